"""A checkpoint that was taken apart and put together again is the same checkpoint."""

import torch
from safetensors.torch import load_file

from finetune.tiny.export import assemble, export, load_tokenizer
from finetune.tiny.unpack import TOWERS, unpack
from omni.assistant import EMBEDDED_PATH


def test_parts_put_together_are_the_checkpoint(tmp_path):
    parts, again = tmp_path / "parts", tmp_path / "again"
    unpack(EMBEDDED_PATH, parts)
    vision, audio = (parts / file for file in TOWERS.values())
    model = assemble(parts / "checkpoint.pt", vision, audio)
    export(model, load_tokenizer(parts / "tokenizer"), again)

    expected, found = (load_file(f / "model.safetensors") for f in (EMBEDDED_PATH, again))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for file in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        assert (again / file).read_text() == (EMBEDDED_PATH / file).read_text()
