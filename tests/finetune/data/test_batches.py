"""Batches: every good row once, the same from any start, the loss of the samples alone."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.data import (
    BadRow,
    BatchConfig,
    BatchStream,
    Collator,
    Position,
    count_loss_tokens,
    encode_sample,
    group_lengths,
    open_dataset,
)
from omni import MediaOptions, OmniModel
from omni.assistant import EMBEDDED_PATH
from omni.errors import RequestError
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


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Forty questions of all lengths; every tenth is broken."""
    rows = [{"messages": turns(f"{i}: {'why ' * (i * 7 % 23)}", "so.")} for i in range(40)]
    rows[5::10] = ["{broken"] * 4
    return open_dataset(write_jsonl(tmp_path_factory.mktemp("texts") / "d.jsonl", rows))


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
    counts = torch.tensor([count_loss_tokens(sample) for sample in samples])
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
    assert count_loss_tokens(batch) == sum(map(count_loss_tokens, samples))


def test_the_embedded_checkpoint_trains_on_a_packed_stream_with_the_loss_of_single_samples(folder):
    model = OmniModel.from_pretrained(EMBEDDED_PATH, dtype=torch.float32).eval()
    processor = OmniProcessor.from_pretrained(EMBEDDED_PATH, model.config)
    dataset = open_dataset(write_jsonl(folder / "tiny.jsonl", MIXED))
    options = MediaOptions(num_frames=4, dpi=18)
    samples = [encode_sample(row, processor, options=options) for row in dataset]
    config = BatchConfig(max_length=1024, rows=2, shuffle=False)
    batch = next(iter(BatchStream(dataset, processor, config, options=options)))
    assert sorted(map(str, batch.origins)) == sorted(str(row.origin) for row in dataset)
    assert batch.inputs.segment_ids is not None
    loss = model(**batch.inputs).loss
    # The towers of the released kind run several pictures together: measured 3e-6 relative.
    torch.testing.assert_close(loss.detach(), losses_alone(model, samples), rtol=1e-4, atol=1e-5)
    loss.backward()
    assert all(
        torch.isfinite(p.grad).all()
        for p in model.language_model.parameters()
        if p.grad is not None
    )


def stream(dataset, processor, config, **options):
    return BatchStream(dataset, processor, config, **options)


def take_epoch(batches):
    return list(itertools.takewhile(lambda batch: batch.epoch == 0, batches))


def same(a, b) -> bool:
    return (
        torch.equal(a.inputs.input_ids, b.inputs.input_ids)
        and torch.equal(a.inputs.labels, b.inputs.labels)
        and a.origins == b.origins
        and a.next == b.next
    )


CONFIGS = [
    BatchConfig(max_length=150, window=2, max_bad_share=0.5),
    BatchConfig(max_length=150, window=1, rows=2, batching="bucket", max_bad_share=0.5),
    BatchConfig(max_length=300, window=50, seed=3, shuffle=False, max_bad_share=0.5),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_an_epoch_has_every_good_row_once_and_lists_every_bad_one(texts, processor, config):
    batches = stream(texts, processor, config)
    epoch = take_epoch(iter(batches))
    bad = [row for row in texts if isinstance(row, BadRow)]
    seen = [origin.row for batch in epoch for origin in batch.origins]
    assert sorted(seen) == [row.origin.row for row in texts if not isinstance(row, BadRow)]
    assert {row.origin.row for row in batches.bad} == {row.origin.row for row in bad}
    listed = [row for batch in epoch for row in batch.bad]
    assert len(listed) == len(set(listed))
    if config.shuffle:
        assert seen != sorted(seen)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_stream_goes_on_from_any_batch_as_if_it_had_never_stopped(texts, processor, config):
    whole = list(itertools.islice(stream(texts, processor, config), 30))
    for number in range(0, 25, 6):
        rest = stream(texts, processor, config, start=whole[number].next)
        for a, b in zip(whole[number + 1 : number + 4], rest, strict=False):
            assert same(a, b)


def test_another_epoch_or_seed_is_another_order(texts, processor):
    config = CONFIGS[0]
    orders = []
    for start, seed in ((0, 0), (1, 0), (0, 1)):
        changed = BatchConfig(max_length=150, seed=seed, max_bad_share=config.max_bad_share)
        first = next(iter(stream(texts, processor, changed, start=Position(epoch=start))))
        orders.append(first.origins)
    assert len(set(orders)) == 3


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_out_the_batches_of_one(texts, processor, processes):
    config = CONFIGS[0]
    alone = take_epoch(iter(stream(texts, processor, config)))
    shared = [
        take_epoch(iter(stream(texts, processor, config, process=i, num_processes=processes)))
        for i in range(processes)
    ]
    assert len({len(each) for each in shared}) == 1
    turns_taken = [batch for group in zip(*shared, strict=True) for batch in group]
    filled = [batch for batch in turns_taken if batch.loss_tokens]
    assert [b.origins for b in filled] == [b.origins for b in alone]
    # What an epoch lacks for a whole group is filled up with batches that teach nothing.
    fillers = [batch for batch in turns_taken if not batch.loss_tokens]
    assert len(fillers) == -len(alone) % processes
    model = tiny_omni.omni_model()
    assert all(model(**batch.inputs).loss.item() == 0 for batch in fillers)
    for group in zip(*shared, strict=True):
        assert len({batch.next for batch in group}) == 1


def test_a_worker_process_gives_the_same_batches(folder, processor):
    dataset = open_dataset(write_jsonl(folder / "worker.jsonl", MIXED))
    config = BatchConfig(max_length=1000)
    here = take_epoch(iter(stream(dataset, processor, config)))
    loader = torch.utils.data.DataLoader(
        stream(dataset, processor, config), batch_size=None, num_workers=1
    )
    there = take_epoch(iter(loader))
    assert len(here) == len(there)
    assert all(same(a, b) for a, b in zip(here, there, strict=True))
    two = torch.utils.data.DataLoader(loader.dataset, batch_size=None, num_workers=2)
    with pytest.raises(RequestError, match="found 2 workers of a DataLoader"):
        next(iter(two))
    windows = [
        [w.rows for item in b.inputs.media for w in item.windows] for b in (here[0], there[0])
    ]
    assert all(torch.equal(a, b) for a, b in zip(*windows, strict=True))


def test_too_many_bad_rows_stop_with_their_list(texts, processor):
    config = BatchConfig(max_length=150, max_bad_share=0.05, shuffle=False)
    with pytest.raises(RequestError, match=r"found 3 bad rows, of which 2.*d\.jsonl:6: found text"):
        list(itertools.islice(stream(texts, processor, config), 50))
    known = [row for row in texts if isinstance(row, BadRow)][:2]
    resumed = stream(texts, processor, config, bad=known)
    assert len(resumed.bad) == 2


def test_a_sample_that_does_not_fit_is_reported_or_its_media_reduced(folder, processor):
    rows = [{"messages": turns("<audio>", "Yes."), "audio": "s.wav"}]
    dataset = open_dataset(write_jsonl(folder / "long.jsonl", rows))
    length = encode_sample(dataset[0], processor).num_tokens - 3
    refusing = BatchConfig(max_length=length, max_bad_share=1)
    with pytest.raises(RequestError, match=r"no row to train on among 1: .*s\.wav 10"):
        next(iter(stream(dataset, processor, refusing)))
    reducing = BatchConfig(max_length=length, reduce_to_fit=True)
    batch = next(iter(stream(dataset, processor, reducing)))
    assert batch.inputs.num_tokens <= length
    assert batch.loss_tokens == len("Yes.") + 1
    assert batch.inputs.media[0].num_tokens < 10


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_length", 0), ("rows", 0), ("window", -1), ("batching", "sort"), ("max_bad_share", 2)],
)
def test_settings_without_a_meaning_are_refused(field, value):
    with pytest.raises(RequestError, match=f"found {field}={value!r}, expected"):
        BatchConfig(**{field: value})
