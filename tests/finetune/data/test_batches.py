"""Batches: every sample once, within its room, with the loss of the samples alone."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.data import (
    Collator,
    decode_media,
    encode_sample,
    group_lengths,
    num_targets,
    open_dataset,
)
from omni import MediaOptions, OmniInputs, OmniModel
from omni.assistant import EMBEDDED_PATH
from omni.processor import OmniProcessor
from tests.support import tiny_omni
from tests.support.rows import turns, write_jsonl, write_media

MIXED = [
    {"messages": turns("<image>\nWhat?", "A cat on a mat, I believe."), "image": "a.png"},
    {"messages": turns("<video>\nAnd now?", "Yes."), "video": "v.mp4"},
    {"messages": [*turns("<audio>", "Three."), *turns("<image>", "Both.")]}
    | {"audio": "s.wav", "image": "b.png"},
    {"messages": turns("Only text.", "Fine, go on.")},
    {"messages": turns("<pdf><video>", "A page and sound."), "pdf": "d.pdf", "video": "v.mp4"}
    | {"media_options": {"audio_in_video": True, "reduction": {"video": "evs(0.5)"}}},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_media(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def processor() -> OmniProcessor:
    return tiny_omni.omni_processor()


LENGTHS = st.lists(st.integers(1, 50), max_size=40)


@given(LENGTHS, st.integers(1, 3), st.sampled_from(["pack", "bucket"]))
def test_every_sample_is_in_one_batch_that_holds_it(lengths, rows, batching):
    batches = group_lengths(lengths, max_length=50, rows=rows, batching=batching)
    placed = [index for batch in batches for row in batch for index in row]
    assert sorted(placed) == list(range(len(lengths)))
    for batch in batches:
        row_lengths = [sum(lengths[i] for i in row) for row in batch]
        assert max(row_lengths) <= 50
        assert max(row_lengths) * len(batch) <= rows * 50
        assert batching == "pack" or all(len(row) == 1 for row in batch)


@given(LENGTHS)
def test_no_two_packed_rows_would_fit_into_one(lengths):
    batches = group_lengths(lengths, max_length=50)
    rows = sorted(sum(lengths[i] for i in row) for [row] in batches)
    assert len(rows) < 2 or rows[0] + rows[1] > 50


def test_a_sample_that_no_row_holds_raises():
    with pytest.raises(ValueError, match="found a sample of 9 tokens, a row holds 8"):
        group_lengths([3, 9], max_length=8)


def losses_alone(model, samples):
    """Mean loss over all targets, from the samples one by one."""
    counts = torch.tensor([num_targets(sample) for sample in samples])
    with torch.no_grad():
        alone = torch.stack([model(**sample).loss for sample in samples])
    return (alone * counts).sum() / counts.sum()


@pytest.mark.parametrize("batching", ["pack", "bucket"])
@pytest.mark.parametrize("max_length", [400, 4096])
def test_the_loss_of_a_batch_is_that_of_its_samples_weighted_by_targets(
    folder, processor, batching, max_length
):
    model = tiny_omni.omni_model()
    dataset = open_dataset(write_jsonl(folder / "mixed.jsonl", MIXED))
    options = MediaOptions(num_frames=4, dpi=36)
    samples = [encode_sample(row, processor, options=options) for row in dataset]
    collator = Collator(processor.ids.pad, max_length=max_length, batching=batching)
    batch = collator(samples)
    # float32 sums in another order: measured 2e-7 relative.
    with torch.no_grad():
        together = model(**dict(batch)).loss
    torch.testing.assert_close(together, losses_alone(model, samples), rtol=1e-5, atol=1e-6)
    assert num_targets(batch) == sum(map(num_targets, samples))


def test_the_embedded_checkpoint_trains_on_packed_rows_with_the_loss_of_single_samples(folder):
    model = OmniModel.from_pretrained(EMBEDDED_PATH, dtype=torch.float32).eval()
    processor = OmniProcessor.from_pretrained(EMBEDDED_PATH, model.config)
    dataset = open_dataset(write_jsonl(folder / "tiny.jsonl", MIXED))
    options = MediaOptions(num_frames=4, dpi=18)
    samples = [encode_sample(row, processor, options=options) for row in dataset]
    batch = Collator(processor.ids.pad, max_length=400)([decode_media(each) for each in samples])
    assert batch.segment_ids is not None
    assert 1 < len(batch.input_ids) < len(samples)
    loss = model(**batch).loss
    # The towers of the released kind run several pictures together: measured 3e-6 relative.
    torch.testing.assert_close(loss.detach(), losses_alone(model, samples), rtol=1e-4, atol=1e-5)
    loss.backward()
    assert all(
        torch.isfinite(p.grad).all()
        for p in model.language_model.parameters()
        if p.grad is not None
    )


@given(LENGTHS.filter(bool), st.sampled_from(["pack", "bucket"]))
def test_batches_of_a_collator_hold_every_token_and_keep_its_room(lengths, batching):
    samples = [
        OmniInputs(
            input_ids=torch.full((1, length), number),
            attention_mask=torch.ones(1, length, dtype=torch.bool),
            labels=torch.full((1, length), number),
        )
        for number, length in enumerate(lengths, start=1)
    ]
    batches = Collator(0, max_length=50, batching=batching).batches(samples)
    assert all(batch.input_ids.numel() <= 50 for batch in batches)
    assert sum(map(num_targets, batches)) == sum(map(num_targets, samples))
    ids = torch.cat([batch.input_ids[batch.attention_mask] for batch in batches])
    expected = [number for number, length in enumerate(lengths, start=1) for _ in range(length)]
    assert sorted(ids.tolist()) == expected
