"""A batch: its answers are those of single questions, and its file does not know it was stopped."""

import datetime
import json
import random
import threading
import time
import tracemalloc
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import omni
from omni import feature_cache, identity
from omni.assistant import Assistant
from omni.batching import BatchRun, decoders
from omni.batching import run as batch_run
from omni.batching.spans import Span
from omni.errors import CorruptMediaError, RequestError, SchemaError, StoppedError
from omni.media import load_media
from omni.media.isolated import Decoder
from omni.media.isolated_process import Server
from tests.support import media as samples
from tests.support import tiny_omni

SHORT = {"max_new_tokens": 4}
QUESTIONS = ["What?", "A longer question, where?"]


class LocalDecoder(Decoder):
    """Media without a child process, whose own tests are in tests/omni/media."""

    def start(self):
        self.server = Server(self.limits, None)

    def call(self, path, command, *arguments):
        return getattr(self.server, command)(*arguments)

    def open(self, path):
        media = load_media(path)
        if "decays" in path:  # opens, and breaks when the model wants its pixels
            media._reader = Decays()
        return media


class Decays:
    def read(self, indices):
        raise CorruptMediaError("decays.mp4: frame 0 is damaged")


@pytest.fixture(autouse=True)
def local(monkeypatch):
    monkeypatch.setattr(decoders, "Decoder", LocalDecoder)


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    return tiny_omni.assistant()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of several sizes, a clip, a recording, a document; one of them damaged."""
    folder = tmp_path_factory.mktemp("items")
    for number in range(4):
        pixels = tiny_omni.picture(16 + 8 * number, 24, seed=number)
        samples.write_image(folder / f"picture{number}.png", pixels)
    data = (folder / "picture0.png").read_bytes()
    (folder / "damaged.png").write_bytes(data[: len(data) // 2])
    samples.write_video(folder / "clip.mp4", samples.moving_square(6), fps=4)
    samples.write_wav(folder / "tone.wav", samples.sine(0.5))
    samples.write_pdf(folder / "two.pdf", [["one"], ["two"]], size_points=(60, 40))
    return folder


@contextmanager
def counting(assistant, monkeypatch):
    """The questions that the model has answered; not those it was stopped at."""
    asked = []
    answer = assistant.reply_lots

    def counted(lots, **options):
        replies = answer(lots, **options)
        asked.extend(prompt for lot in lots for prompt in lot)
        return replies

    with monkeypatch.context() as patch:
        patch.setattr(assistant, "reply_lots", counted)
        yield asked


def records(folder, assistant, **options):
    return list(BatchRun(folder, QUESTIONS, assistant=assistant, **{**SHORT, **options}))


def test_answers_are_those_of_single_questions_in_any_grouping(folder, assistant):
    alone = records(folder, assistant, batch_size=1)
    assert len(alone) == 2 * 8
    for record in alone:
        if "damaged" in record["item"]:
            continue
        reply = assistant.ask(record["question"], record["item"], **SHORT)
        assert record["answer"] == reply.text
        assert record["tokens"]["prompt"] == reply.ledger.prompt_tokens
        assert record["tokens"]["answer"] == reply.ledger.answer_tokens
    for grouping in ({"batch_size": 3}, {"batch_size": 16}, {"batch_size": 2, "workers": 3}):
        assert records(folder, assistant, **grouping) == alone


def test_one_bad_item_is_its_error_and_nothing_else(folder, assistant):
    run = BatchRun(folder, QUESTIONS, assistant=assistant, **SHORT)
    bad = [record for record in run if record["error"] is not None]
    assert [(r["item"], r["question"]) for r in bad] == [
        (str(folder / "damaged.png"), question) for question in QUESTIONS
    ]
    assert {r["error"]["class"] for r in bad} == {"CorruptMediaError"}
    assert all("damaged.png" in r["error"]["message"] and r["answer"] is None for r in bad)
    assert (run.summary.records, run.summary.failed, run.summary.items) == (16, 2, 8)


def test_what_breaks_while_the_model_reads_it_leaves_the_rest_of_its_group_alone(
    tmp_path, assistant
):
    for size, name in enumerate(("a", "decays", "z"), start=8):
        frames = samples.moving_square(6, size=size)
        samples.write_video(tmp_path / f"{name}.mp4", frames, fps=4)
    first, broken, last = records(tmp_path, assistant, batch_size=8)[::2]
    assert broken["error"] == {
        "class": "CorruptMediaError",
        "message": "decays.mp4: frame 0 is damaged",
    }
    assert first["answer"] == last["answer"] == assistant.ask("What?", first["item"], **SHORT).text


def answers(journal: bytes) -> int:
    """Whole lines of a journal that hold an answer."""
    return sum(b'"answer":' in line for line in journal.splitlines(True) if line.endswith(b"\n"))


@pytest.mark.parametrize(("seed", "workers"), [(0, 1), (1, 2)])
def test_a_run_that_is_stopped_anywhere_ends_with_the_same_bytes_and_computes_nothing_twice(
    folder, assistant, tmp_path, monkeypatch, seed, workers
):
    options = {"per": "page", "batch_size": 3, "workers": workers, **SHORT}
    options["assistant"] = assistant
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    with counting(assistant, monkeypatch) as asked:
        expected = list(BatchRun(folder, QUESTIONS, out=whole, **options))
    needed = len(asked)
    assert needed == 16  # 7 sound items, one of them of two pages

    draw = random.Random(seed)
    journal = tmp_path / "stopped.journal.jsonl"
    computed = 0
    for _ in range(3):
        kept = journal.stat().st_size if journal.exists() else 0
        with counting(assistant, monkeypatch) as asked:
            run = BatchRun(folder, QUESTIONS, out=stopped, **options)
            for _ in range(draw.randrange(12)):
                next(run)
            run.close()
        assert not stopped.exists()
        # As kill -9 would leave it: some of the last lines are missing, the last one is torn.
        before = journal.read_bytes()
        journal.write_bytes(before[: draw.randint(min(kept, len(before)), len(before))])
        computed += len(asked) - answers(before) + answers(journal.read_bytes())
    with counting(assistant, monkeypatch) as asked:
        assert list(BatchRun(folder, QUESTIONS, out=stopped, **options)) == expected
    assert stopped.read_bytes() == whole.read_bytes()
    assert computed + len(asked) == needed

    with counting(assistant, monkeypatch) as asked:
        run = BatchRun(folder, QUESTIONS, out=stopped, **options)
        assert list(run) == expected
    assert asked == []
    assert run.summary.computed == 0
    assert stopped.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob(".*partial"))


def test_changing_a_part_of_the_identity_recomputes_just_that(tmp_path, assistant, monkeypatch):
    items = tmp_path / "items"
    items.mkdir()
    for number in range(3):
        pixels = tiny_omni.picture(16, 24, seed=number)
        samples.write_image(items / f"picture{number}.png", pixels)

    def computed(questions=QUESTIONS, assistant=assistant, **options):
        with counting(assistant, monkeypatch) as asked:
            options = {**SHORT, **options}
            list(
                BatchRun(items, questions, assistant=assistant, out=tmp_path / "r.jsonl", **options)
            )
        return len(asked)

    assert computed() == 6
    assert computed() == 0
    assert computed([*QUESTIONS, "And now?"]) == 3  # a new question
    assert computed(["And now?"]) == 0
    samples.write_image(items / "picture1.png", tiny_omni.picture(16, 24, seed=9))
    assert computed() == 2  # one item's bytes
    (items / "picture1.png").rename(items / "renamed.png")
    assert computed() == 0  # the same bytes under another name
    assert computed(max_new_tokens=5) == 6
    assert computed(reduction={"image": "uniform(0.5)"}) == 6
    assert computed(temperature=0.5) == 6
    assert computed(temperature=0.5, seed=1) == 6
    assert computed(reduction={"image": "uniform(0.5)"}, batch_size=2) == 0
    other = tiny_omni.assistant(seed=1)
    assert computed(assistant=other) == 6
    assert computed() == 0


def named(one):
    return identity.fingerprint(one.model, one.processor)


def test_fingerprints_follow_weights_config_and_settings_not_places(tmp_path, assistant):
    own = named(assistant)
    assistant.model.save_pretrained(tmp_path / "copy")
    assistant.processor.save_pretrained(tmp_path / "copy")
    assert named(omni.load(tmp_path / "copy")) == own

    changed = tiny_omni.assistant()
    assert named(changed) == own
    weight = next(p for n, p in changed.model.named_parameters() if "language_model" in n)
    weight.data += 1e-3
    assert named(changed) != own
    assert named(tiny_omni.assistant(video_pruning_rate=0.5)) != own
    faster = tiny_omni.assistant()
    faster.processor = tiny_omni.omni_processor(faster.model.config, fps=2.0)
    assert named(faster) != own


def test_equal_files_are_answered_once_but_their_errors_name_each(tmp_path, assistant, monkeypatch):
    items = tmp_path / "items"
    items.mkdir()
    for name in ("a.png", "b.png"):
        samples.write_image(items / name, tiny_omni.picture(16, 24))
        (items / f"bad-{name}").write_bytes(b"\x89PNG\r\n\x1a\n")
    with counting(assistant, monkeypatch) as asked:
        found = list(BatchRun(items, "What?", assistant=assistant, **SHORT))
    assert len(asked) == 1
    first, second, bad, other = found
    assert first["answer"] == second["answer"]
    assert bad["sha256"] == other["sha256"]
    assert "bad-a.png" in bad["error"]["message"]
    assert "bad-b.png" in other["error"]["message"]


def test_errors_are_kept_until_they_are_to_be_tried_again(tmp_path, assistant):
    missing = tmp_path / "missing.png"
    options = {"assistant": assistant, "out": tmp_path / "r.jsonl", **SHORT}
    [record] = BatchRun([missing], "What?", **options)
    assert record["error"]["class"] == "MediaNotFoundError"
    assert record["sha256"] is None
    run = BatchRun([missing], "What?", **options)
    assert [*run] == [record]
    assert run.summary.computed == 0
    run = BatchRun([missing], "What?", retry_errors=True, **options)
    assert [*run] == [record]
    assert run.summary.computed == 1


def test_rows_bring_questions_and_columns(folder, assistant):
    rows = [
        {"path": folder / "picture0.png", "question": "Own?", "label": "x"},
        {"path": [folder / "picture0.png", folder / "tone.wav"]},
        {"label": "y"},
    ]
    own, both, bad = BatchRun(rows, "What?", assistant=assistant, **SHORT)
    assert (own["question"], own["row"]) == ("Own?", {"label": "x"})
    media = (folder / "picture0.png", folder / "tone.wav")
    assert both["answer"] == assistant.ask("What?", *media, **SHORT).text
    assert bad["error"]["class"] == "RequestError"


def test_shards_together_are_the_whole(folder, assistant):
    whole = records(folder, assistant)
    shards = [records(folder, assistant, shard=f"{i}/3") for i in (1, 2, 3)]
    assert sorted(json.dumps(record) for shard in shards for record in shard) == sorted(
        map(json.dumps, whole)
    )


def test_pages_and_stretches_of_time_are_asked_about_one_by_one(tmp_path, assistant):
    samples.write_pdf(tmp_path / "two.pdf", [["one"], ["two"]], size_points=(60, 40))
    samples.write_wav(tmp_path / "tone.wav", samples.sine(2.5))
    found = list(BatchRun(tmp_path, "What?", assistant=assistant, per="page", chunk_s=1.0, **SHORT))
    assert [record["span"] for record in found] == [
        {"start_s": 0.0, "end_s": 1.0},
        {"start_s": 1.0, "end_s": 2.0},
        {"start_s": 2.0, "end_s": 2.5},
        {"page": 1},
        {"page": 2},
    ]
    assert all(record["error"] is None for record in found)


def test_answers_about_parts_are_combined_into_one(tmp_path, assistant, monkeypatch):
    samples.write_pdf(tmp_path / "two.pdf", [["one"], ["two"]], size_points=(60, 40))
    samples.write_wav(tmp_path / "tone.wav", samples.sine(2.5))
    options = {"per": "page", "chunk_s": 1.0, "combine": "From these notes:", **SHORT}
    run = {"assistant": assistant, "out": tmp_path / "r.jsonl", **options}
    found = list(BatchRun(tmp_path, QUESTIONS, **run))
    assert [record["combined"] for record in found] == [None] * 6 + [3, 3] + [None] * 4 + [2, 2]
    for combined in (found[6], found[13]):
        parts = [
            record
            for record in found
            if record["item"] == combined["item"] and record["span"] is not None
        ]
        assert combined["span"] is None
        lines = [
            f"{Span.from_dict(part['span']).label()}: {part['answer']}"
            for part in parts
            if part["question"] == combined["question"]
        ]
        text = "\n".join(["From these notes:", f"Question: {combined['question']}", *lines])
        expected = assistant.chat([{"role": "user", "content": text}], **SHORT)
        assert combined["answer"] == expected.text
        assert combined["tokens"]["media"] == 0
    with counting(assistant, monkeypatch) as asked:
        assert list(BatchRun(tmp_path, QUESTIONS, **run)) == found
    assert asked == []
    with counting(assistant, monkeypatch) as asked:
        list(BatchRun(tmp_path, QUESTIONS, **{**run, "combine": "Otherwise:"}))
    assert len(asked) == 4  # the parts were known
    assert [Span(start_s=a, end_s=a + 59.5).label() for a in (0.0, 3599.96)] == [
        "0:00:00-0:00:59.5",
        "1:00:00-1:00:59.5",
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_parts_of_an_earlier_window_are_combined_too(tmp_path, assistant, monkeypatch, workers):
    """The last part may close a window: what combines them then begins beside it."""
    samples.write_pdf(tmp_path / "a.pdf", [["x"]] * 4, size_points=(60, 40))
    slow = assistant.reply_lots

    def reply_lots(lots, **options):
        time.sleep(0.1 if lots[0][0].media else 0)
        return slow(lots, **options)

    monkeypatch.setattr(assistant, "reply_lots", reply_lots)
    options = {"per": "page", "combine": "From these notes:", "batch_size": 4, "workers": workers}
    *parts, combined = BatchRun(tmp_path, "What?", assistant=assistant, **options, **SHORT)
    lines = [f"{Span.from_dict(part['span']).label()}: {part['answer']}" for part in parts]
    text = "\n".join(["From these notes:", "Question: What?", *lines])
    expected = assistant.chat([{"role": "user", "content": text}], **SHORT)
    assert combined["answer"] == expected.text
    assert combined["tokens"]["prompt"] == expected.ledger.prompt_tokens


def test_nothing_is_combined_of_an_equal_file_with_a_failed_part(tmp_path, assistant, monkeypatch):
    samples.write_wav(tmp_path / "a.wav", samples.sine(4.0))
    (tmp_path / "b.wav").write_bytes((tmp_path / "a.wav").read_bytes())
    prepare = assistant.prepare

    def fails(messages, **options):
        content = messages[0]["content"]
        if not isinstance(content, str) and "1-2 s" in content[0]["media"].name:
            raise CorruptMediaError("damaged")
        return prepare(messages, **options)

    monkeypatch.setattr(assistant, "prepare", fails)
    run = {"assistant": assistant, "chunk_s": 1.0, "combine": "From these notes:", **SHORT}
    found = list(BatchRun(tmp_path, "What?", **run))
    errors = [record["error"] and record["error"]["class"] for record in found]
    assert errors == [None, "CorruptMediaError", None, None, "MissingPartsError"] * 2


def test_an_item_that_failed_as_a_whole_is_still_asked_about_in_parts(
    tmp_path, assistant, monkeypatch
):
    samples.write_pdf(tmp_path / "a.pdf", [["x"]] * 3, size_points=(60, 40))
    page = assistant.plan("What?", load_media(tmp_path / "a.pdf").render(0)).prompt_tokens
    settings = replace(assistant.processor.settings, max_model_len=page + 40)
    monkeypatch.setattr(assistant.processor, "settings", settings)
    run = {"assistant": assistant, "out": tmp_path / "r.jsonl", **SHORT}
    [whole] = BatchRun(tmp_path / "a.pdf", "What?", **run)
    assert whole["error"]["class"] == "ContextLengthError"
    pages = list(BatchRun(tmp_path / "a.pdf", "What?", per="page", **run))
    assert [page["error"] for page in pages] == [None] * 3


def test_a_second_run_leaves_the_file_of_the_first_alone(tmp_path, assistant):
    samples.write_pdf(tmp_path / "a.pdf", [["x"]] * 3, size_points=(60, 40))
    run = {"assistant": assistant, "out": tmp_path / "r.jsonl", "per": "page", **SHORT}
    first = BatchRun(tmp_path / "a.pdf", "What?", **run)
    records = [next(first)]
    with pytest.raises(RequestError, match="another process is writing it"):
        BatchRun(tmp_path / "a.pdf", "What?", **run)
    records += first
    written = (tmp_path / "r.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == records


def test_several_files_of_a_row_are_the_same_with_a_cache(folder, tmp_path, assistant):
    row = {"path": [str(folder / name) for name in ("picture0.png", "picture3.png", "two.pdf")]}
    run = {"assistant": assistant, **SHORT}
    for _ in range(2):
        [cached] = BatchRun([row], "What?", cache=tmp_path / "cache", **run)
        [plain] = BatchRun([row], "What?", **run)
        assert cached == plain
        assert plain["error"] is None


def test_columns_come_back_as_json(folder, tmp_path, assistant):
    picture = str(folder / "picture0.png")
    columns = {
        "day": datetime.date(2026, 11, 30),
        "at": datetime.datetime(2026, 11, 30, 12, 5),
        "price": Decimal("1.50"),
        "score": float("nan"),
        "rank": np.int64(3),
        "tags": ("a", {"b": Path("c")}),
    }
    rows = [{"path": picture, **columns}, {"path": picture, "raw": b"x"}]
    good, bad = BatchRun(rows, "What?", assistant=assistant, out=tmp_path / "r.jsonl", **SHORT)
    assert good["row"] == {
        "day": "2026-11-30",
        "at": "2026-11-30T12:05:00",
        "price": "1.50",
        "score": None,
        "rank": 3,
        "tags": ["a", {"b": "c"}],
    }
    assert json.loads((tmp_path / "r.jsonl").read_text().splitlines()[0]) == good
    assert bad["error"]["class"] == "RequestError"
    assert "bytes in column 'raw'" in bad["error"]["message"]


def test_notes_too_long_for_the_context_are_combined_by_halves(tmp_path, assistant, monkeypatch):
    samples.write_wav(tmp_path / "tone.wav", samples.sine(6.0))
    options = {"chunk_s": 1.0, "combine": "From these notes:", "max_new_tokens": 8}
    run = {"assistant": assistant, "out": tmp_path / "r.jsonl", **options}
    whole = list(BatchRun(tmp_path, "What?", **run))[-1]
    with monkeypatch.context() as patch:
        context = whole["tokens"]["prompt"] + 7  # one token too little
        settings = replace(assistant.processor.settings, max_model_len=context)
        patch.setattr(assistant.processor, "settings", settings)
        with counting(assistant, monkeypatch) as asked:
            [*parts, halved] = BatchRun(tmp_path, "What?", **run)
        with counting(assistant, monkeypatch) as again:
            assert list(BatchRun(tmp_path, "What?", **run))[-1] == halved
    assert (len(asked), len(again)) == (6 + 2 + 1, 0)  # parts, halves, and what combines them
    assert halved["combined"] == 6
    lines = []
    for half, label in ((parts[:3], "0:00:00-0:00:03"), (parts[3:], "0:00:03-0:00:06")):
        notes = [f"{Span.from_dict(part['span']).label()}: {part['answer']}" for part in half]
        text = "\n".join(["From these notes:", "Question: What?", *notes])
        reply = assistant.chat([{"role": "user", "content": text}], max_new_tokens=8)
        lines.append(f"{label}: {reply.text}")
    text = "\n".join(["From these notes:", "Question: What?", *lines])
    expected = assistant.chat([{"role": "user", "content": text}], max_new_tokens=8)
    assert halved["answer"] == expected.text


def test_the_next_items_are_opened_while_the_model_answers(tmp_path, assistant, monkeypatch):
    for number in range(3):
        samples.write_image(tmp_path / f"picture{number}.png", tiny_omni.picture(16, 16, number))
    opened = [threading.Event() for _ in range(3)]
    open_one = LocalDecoder.open

    def noted(self, path):
        opened[int(path[-5])].set()
        return open_one(self, path)

    answer = assistant.reply_lots
    seen = []

    def waiting(lots, **given):
        seen.append(opened[min(len(seen) + 1, 2)].wait(timeout=30))
        return answer(lots, **given)

    monkeypatch.setattr(LocalDecoder, "open", noted)
    monkeypatch.setattr(assistant, "reply_lots", waiting)
    monkeypatch.setattr(batch_run, "GROUPS_AHEAD", 1)
    found = records(tmp_path, assistant, batch_size=1)
    assert [record["error"] for record in found] == [None] * 6
    assert seen == [True] * 3


def test_a_run_that_is_stopped_ends_between_two_tokens(folder, assistant, monkeypatch, tmp_path):
    out = {"out": tmp_path / "r.jsonl", "max_new_tokens": 16, "batch_size": 1}
    run = BatchRun(folder, QUESTIONS, assistant=assistant, **out)
    calls = []
    forward = assistant.model.forward

    def stopping(*given, **named):
        calls.append(None)
        if len(calls) == 3:
            run.stop.request()
        return forward(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(assistant.model, "forward", stopping)
        with pytest.raises(StoppedError):
            list(run)
    assert len(calls) == 3
    assert records(folder, assistant, **out) == records(folder, assistant, max_new_tokens=16)


def test_an_item_is_opened_once_for_all_of_its_parts(tmp_path, assistant, monkeypatch):
    samples.write_wav(tmp_path / "tone.wav", samples.sine(4.0))
    opened = []
    open_one = LocalDecoder.open
    monkeypatch.setattr(
        LocalDecoder, "open", lambda self, path: opened.append(path) or open_one(self, path)
    )
    found = list(BatchRun(tmp_path, QUESTIONS, assistant=assistant, chunk_s=1.0, **SHORT))
    assert len(found) == 8
    assert len(opened) == 1


def test_nothing_is_combined_when_a_part_has_failed(tmp_path, assistant, monkeypatch):
    samples.write_wav(tmp_path / "tone.wav", samples.sine(2.5))
    prepare = assistant.prepare

    def flawed(messages, **options):
        content = messages[0]["content"]
        if not isinstance(content, str) and content[0]["media"].duration_s < 0.9:
            raise CorruptMediaError("tone.wav: the end is damaged")
        return prepare(messages, **options)

    monkeypatch.setattr(assistant, "prepare", flawed)
    options = {"chunk_s": 1.0, "combine": "From these notes:", **SHORT}
    *parts, combined = BatchRun(tmp_path, "What?", assistant=assistant, **options)
    assert [part["error"] is None for part in parts] == [True, True, False]
    assert combined["error"]["class"] == "MissingPartsError"
    assert combined["error"]["message"] == (
        "1 of 3 parts were not answered, so nothing was combined; the first is "
        "0:00:02-0:00:02.5 (CorruptMediaError). Their records say why."
    )


@pytest.mark.parametrize("parts", [{}, {"per": "page", "chunk_s": 1.0}])
def test_a_cache_gives_the_same_answers_and_spares_decoders_and_encoders(
    folder, assistant, tmp_path, monkeypatch, parts
):
    expected = records(folder, assistant, **parts)
    cache = {"cache": tmp_path / "features", "cache_size": "1GB", **parts}
    assert records(folder, assistant, **cache) == expected
    towers, opened = [], []
    monkeypatch.setattr(feature_cache, "run_tower", lambda *given: towers.append(given))

    class Watched(decoders.Decoder):
        def open(self, path):
            opened.append(Path(path).name)
            return super().open(path)

    monkeypatch.setattr(decoders, "Decoder", Watched)
    other = tiny_omni.assistant()  # whose decoder is not open yet
    assert records(folder, other, **cache) == expected
    assert towers == []
    assert set(opened) == {"damaged.png"}


def test_memory_does_not_hold_the_results(tmp_path, assistant):
    """Per record no more than its key stays: about 200 bytes, where a record is about 600."""

    def peak(count):
        missing = (tmp_path / f"missing{number}.png" for number in range(count))
        run = BatchRun(missing, "What?", assistant=assistant, out=tmp_path / f"{count}.jsonl")
        tracemalloc.start()
        assert sum(1 for _ in run) == count
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(10)
    assert (peak(800) - peak(200)) / 600 < 300


def test_a_file_that_no_batch_wrote_is_never_written_over(folder, assistant, tmp_path):
    manifest = tmp_path / "items.jsonl"
    line = json.dumps({"path": str(folder / "a.png"), "question": "What?"})
    manifest.write_text(line)
    with pytest.raises(RequestError, match=r"items.jsonl is there, but not items.journal.jsonl"):
        BatchRun(manifest, assistant=assistant, out=manifest, expand=True)
    assert manifest.read_text() == line
    assert [path.name for path in tmp_path.iterdir()] == ["items.jsonl"]


@pytest.mark.parametrize("out", ["a.jsonl", "a.parquet"])
@pytest.mark.parametrize("name", ["a.journal.jsonl", "a.timings.jsonl", ".{out}.partial"])
def test_a_run_that_cannot_write_says_so_and_locks_nothing(folder, assistant, tmp_path, name, out):
    out = tmp_path / out
    blocked = tmp_path / name.format(out=out.name)
    blocked.mkdir()
    options = {"assistant": assistant, "out": out, **SHORT}
    with pytest.raises(RequestError, match=r"cannot be written \(.*choose another --out") as held:
        BatchRun(folder / "picture0.png", QUESTIONS, **options)
    blocked.rmdir()
    assert len(list(BatchRun(folder / "picture0.png", QUESTIONS, **options))) == len(QUESTIONS)
    assert held  # and with it what it came through


def test_files_without_a_question_are_refused_at_once(folder, assistant):
    with pytest.raises(RequestError, match="There is no question for these files"):
        BatchRun(folder, assistant=assistant, expand=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"combine": "From these notes:"}, "combine needs parts to combine"),
        ({"cache": "x", "cache_size": "much"}, "The size is 'much'"),
        (
            {"cache": "x", "reduction": {"image": "cls_prune_merge(0.5)"}},
            "asks what the tower attends to",
        ),
        ({"per": "line"}, "per is 'line'; expected 'item' or 'page'"),
        ({"chunk_s": 0.1}, "A chunk of 0.1 s was asked for"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"timeout_s": float("nan")}, "timeout_s nan"),
        ({"shard": "0/4"}, "The shard is '0/4'"),
        ({"out": "results.xml"}, "written as .jsonl or .parquet"),
        ({"out": "/nowhere/results.jsonl"}, "there is no folder /nowhere"),
        ({"reduction": {"image": "nothing(1)"}}, "nothing"),
        ({"temperature": -1.0}, "temperature is -1.0"),
    ],
)
def test_what_would_make_every_record_an_error_is_refused_at_once(
    folder, assistant, options, message
):
    with pytest.raises(RequestError, match=message):
        BatchRun(folder, "What?", assistant=assistant, **options)


def test_parquet_has_the_same_results(folder, assistant, tmp_path):
    import pyarrow.parquet as pq

    expected = records(folder, assistant, out=tmp_path / "r.parquet")
    rows = pq.read_table(tmp_path / "r.parquet").to_pylist()
    assert [row["answer"] for row in rows] == [record["answer"] for record in expected]
    assert [row["prompt_tokens"] is None for row in rows] == [r["tokens"] is None for r in expected]
    before = (tmp_path / "r.parquet").read_bytes()
    records(folder, assistant, out=tmp_path / "r.parquet")
    assert (tmp_path / "r.parquet").read_bytes() == before


TOTAL = {"type": "object", "properties": {"total": {"type": "integer"}}, "required": ["total"]}
FORM = {
    "total": {"question": "What is the total?", "schema": TOTAL},
    "paid": {"question": "How was it paid?", "choices": ["cash", "card"]},
    "words": "What is written there?",
}


def test_a_form_gives_each_field_its_own_schema_and_its_name(folder, assistant):
    options = {"assistant": assistant, "max_new_tokens": 30}
    found = list(BatchRun(folder, FORM, **options))
    by_field = {name: [r for r in found if r["field"] == name] for name in FORM}
    assert [len(group) for group in by_field.values()] == [8, 8, 8]
    for name, group in by_field.items():
        for record in (record for record in group if record["error"] is None):
            if name == "words":
                assert record["parsed"] is None
                continue
            assert record["parsed"] == json.loads(record["answer"])
            schema = TOTAL if name == "total" else {"enum": ["cash", "card"]}
            jsonschema.validate(record["parsed"], schema)
            asked = assistant.ask(
                record["question"], record["item"], schema=schema, max_new_tokens=30
            )
            assert asked.text == record["answer"]
    assert list(BatchRun(folder, FORM, batch_size=1, **options)) == found


def test_a_schema_is_part_of_what_a_run_goes_on_by(tmp_path, folder, assistant, monkeypatch):
    out = tmp_path / "answers.jsonl"
    options = {"assistant": assistant, "out": out, "max_new_tokens": 40}
    swapped = {**TOTAL, "properties": {"b": {"type": "null"}, "total": {"type": "integer"}}}
    turned = {**TOTAL, "properties": {"total": {"type": "integer"}, "b": {"type": "null"}}}
    for schema, expected in ((TOTAL, 7), (TOTAL, 0), (None, 7), (swapped, 7), (turned, 7)):
        with counting(assistant, monkeypatch) as asked:
            list(BatchRun(folder, "What?", schema=schema, **options))
        assert len(asked) == expected


def test_schemas_are_refused_before_anything_runs(folder, assistant):
    with pytest.raises(SchemaError, match="max_new_tokens is 4"):
        records(folder, assistant, schema=TOTAL)
    form = {"n": {"question": "How many?", "schema": {"type": "integer", "minimun": 1}}}
    with pytest.raises(SchemaError, match="did you mean 'minimum'"):
        BatchRun(folder, form, assistant=assistant)


def test_parsed_values_are_json_text_in_parquet(tmp_path, folder, assistant):
    pq = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "answers.parquet"
    list(BatchRun(folder, FORM, assistant=assistant, out=out, max_new_tokens=30))
    rows = pq.read_table(out).to_pylist()
    row = next(row for row in rows if row["field"] == "paid" and row["error"] is None)
    assert json.loads(row["parsed"]) in ("cash", "card")
