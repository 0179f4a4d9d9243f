"""`cls_prune_merge` in a request: the tower says what it looks at, every item on its own."""

from dataclasses import replace

import pytest
import torch

from omni.encoding import encode_media, source_layout
from omni.errors import RequestError
from omni.inputs import collate
from omni.options import MediaOptions
from tests.support import tiny_omni
from token_reduction import build

SPEC = "cls_prune_merge(0.5)"


@pytest.fixture(scope="module")
def assistant():
    return tiny_omni.assistant()


def sample(assistant, kind: str, source, spec: str):
    options = {"fps": 2.0} if kind == "video" else {}
    medium = assistant.processor.load_media(source, **options)
    turns = [{"role": "user", "content": [{"type": kind, kind: medium}]}]
    turns.append({"role": "assistant", "content": "A thing."})
    options = MediaOptions(reduction={kind: spec})
    return assistant.processor(turns, options=options, with_labels=True)


def samples(assistant):
    return [
        sample(assistant, "image", tiny_omni.picture(64, 64, 0), SPEC),
        sample(assistant, "image", tiny_omni.picture(48, 96, 1), "identity"),
        sample(assistant, "video", tiny_omni.clip(5, 64, 48, 2), SPEC),
        sample(assistant, "image", tiny_omni.picture(64, 64, 3), f"{SPEC}|uniform(0.5)"),
        sample(assistant, "video", tiny_omni.clip(4, 64, 48, 4), "evs(0.5)"),
    ]


def test_a_mixed_batch_is_as_its_samples_alone(assistant):
    parts = samples(assistant)
    alone = torch.stack([assistant.model(**each).loss for each in parts])
    counts = torch.stack([(each.labels != -100).sum() for each in parts])
    batch = collate(parts, pad_token_id=0, padding_side="right")
    expected = (alone * counts).sum() / counts.sum()
    torch.testing.assert_close(assistant.model(**batch).loss, expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("which", [0, 2])
def test_the_kept_tokens_are_those_that_the_class_tokens_look_at_most(assistant, which):
    (item,) = samples(assistant)[which].media
    model = assistant.model
    ((features, layout),) = encode_media(model, [item])

    tower, steps = model.vision_model, item.grid[0]
    plain = replace(item, reduction="identity")
    ((rows, _),) = encode_media(model, [plain])
    tower.set_attn_implementation("eager")
    seen = []
    handle = tower.encoder.layer[-1].attention.register_forward_hook(
        lambda module, args, out: seen.append(out[1])
    )
    encode_media(model, [plain])
    handle.remove()
    tower.set_attn_implementation("sdpa")
    config = tower.config
    received = torch.cat(
        [m[:, :, : config.num_cls_tokens, config.num_summary_tokens :].mean((1, 2)) for m in seen]
    )
    frames = model.tubelet.num_frames if item.modality == "video" else 1
    cells = received.repeat_interleave(frames, 0)[:steps].flatten()
    before = source_layout(model, item, {"attention": cells})
    expected, expected_layout = build(SPEC)(rows, before)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(layout.cells, expected_layout.cells)


def test_with_tome_it_is_refused(assistant):
    with pytest.raises(RequestError, match="merges patches inside the tower"):
        sample(assistant, "image", tiny_omni.picture(64, 64, 0), f"tome(0.5)|{SPEC}")
