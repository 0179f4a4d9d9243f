"""A batch from items to records.

1. Take the next few tasks: item, span, question. What the journal has is done.
2. Open their media in the decoder process and build their prompts; lengths are known now.
3. Answer them in groups of similar length, media of several questions once (`answering.py`).
4. Write each result to the journal when it is there, and yield the records in order.

The model has threads of its own, which answer a group each: meanwhile the next tasks are opened,
and the decoder process is some frames ahead of all.

The final file is a function of items, questions and journal, so it does not matter how often a run
was stopped, nor which prompts shared a batch: an answer at temperature 0 does not depend on that.
"""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import omni
from omni.assistant import Assistant
from omni.batching import decoders
from omni.batching.answering import Answerer
from omni.batching.identity import settings_of
from omni.batching.items import Item, ItemSource, in_shard, parse_shard
from omni.batching.lots import Lot, Task, find_groups
from omni.batching.model_threads import default_workers, model_threads
from omni.batching.opening import Opener
from omni.batching.option_checks import check_options
from omni.batching.output import Writer, check_format, check_ours, open_writer
from omni.batching.questions import read_questions
from omni.batching.results import Results, make_record
from omni.batching.spans import check_chunk
from omni.batching.summary import Summary
from omni.batching.tasks import TaskSource
from omni.budget import parse_bytes
from omni.errors import RequestError
from omni.feature_cache import FeatureCache
from omni.identity import fingerprint
from omni.media import Media
from omni.stopping import Stop

HELD_BYTES = 24 * 2**20  # of pictures and recordings that wait; twice, with those being answered
MAX_KNOWN_TASKS = 128  # that need no answer any more, after which their records are written
GROUPS_AHEAD = 4  # groups' worth of media that are sorted by length together; at first one


class BatchRun(Iterator[dict[str, Any]]):
    """Answers questions about many items; iterate it for the records.

    A record has ``item``, ``sha256``, ``span`` (page or seconds; None for the whole), ``field`` (of
    a form), ``question``, ``answer``, ``parsed`` (with a schema, the answer's values),
    ``finish_reason``, ``reasoning``, ``tokens`` (prompt, media, text, answer; what a budget
    lowered), ``error`` (class and message, or None), ``seed``, ``model``, ``versions`` and ``row``,
    the further columns of a manifest. Nothing in it changes from run to run; seconds are in the
    file of timings.

    Args:
        items: A folder, glob, media file or manifest; or an iterable of paths and rows.
        questions: One or several, or a form as `omni.batching.questions.read_questions` takes it; a
            row's own question goes before.
        assistant: Who answers.
        out: Result file, ``.jsonl`` or ``.parquet``. Beside it are the journal
            (``NAME.journal.jsonl``), by which a stopped run goes on, and the seconds of each task
            (``NAME.timings.jsonl``). None writes no file.
        per: ``item``, or ``page`` to ask about each page of a document.
        chunk_s: Ask about each so many seconds of recordings and videos.
        combine: What to do with the answers about an item's pages or stretches, such as "Answer
            from these notes.": each question is then asked once more, about them. Needs ``per`` or
            ``chunk_s``.
        batch_size: Media whose questions are answered together, if they are alike in length. With
            sampling or ``max_memory`` each answer is made alone, since those depend on what shares
            a batch.
        workers: Groups of media that are answered at the same time, each with its share of the
            cores. None is two for a small model on a CPU and else one; with ``max_memory`` one.
        timeout_s: Longest silence of a decoder, in seconds, after which it is stopped.
        shard: ``i/n``: only every n-th item, by its name.
        retry_errors: Try again what the journal knows as failed.
        cache: Folder that keeps what is known about each medium and what the encoders gave for it,
            for other questions, settings of answers and runs; they need not be opened then.
        cache_size: Most that it may hold, in bytes or as ``"10GB"``; what was used longest ago
            goes first.
        expand: Whether a list of paths may have folders, globs and manifests in it.
        options: Those of `Assistant.chat`, the same for all tasks.

    Raises:
        RequestError: An option, a path, a pattern or a manifest is wrong.
    """

    def __init__(
        self,
        items: Any,
        questions: str | Sequence[Any] | Mapping[str, Any] = (),
        *,
        assistant: Assistant,
        out: str | Path | None = None,
        per: str = "item",
        chunk_s: float | None = None,
        batch_size: int = 16,
        workers: int | None = None,
        timeout_s: float = 120.0,
        shard: str | tuple[int, int] | None = None,
        combine: str | None = None,
        retry_errors: bool = False,
        cache: str | Path | None = None,
        cache_size: int | str = "10GB",
        expand: bool = False,
        **options: Any,
    ) -> None:
        if per not in ("item", "page"):
            raise RequestError(f"per is {per!r}; expected 'item' or 'page'.")
        if chunk_s is not None:
            check_chunk(chunk_s, f"{chunk_s:g} s")
        if batch_size < 1 or not timeout_s > 0 or (workers is not None and workers < 1):
            raise RequestError(
                f"batch_size is {batch_size}, workers {workers} and timeout_s {timeout_s:g}; "
                "expected at least 1, at least 1 or None, and more than 0."
            )
        if combine is not None and not (per == "page" or chunk_s is not None):
            raise RequestError(
                "combine needs parts to combine; expected per='page' or chunk_s (--per page, "
                "--chunk 60s) with it."
            )
        self.assistant = assistant
        self.source = ItemSource(items, expand=expand)
        self.shard = parse_shard(shard) if isinstance(shard, str) else shard
        asked = read_questions(questions)
        if not asked and not self.source.may_ask:
            raise RequestError(
                "There is no question for these files; give one (--question TEXT, --questions "
                "FORM), or a manifest whose rows have them."
            )
        media, generation = check_options(assistant, asked, options, is_cached=cache is not None)
        self.workers = workers or default_workers(assistant.model)
        if media.max_memory is not None:
            self.workers = 1
        self.batch_size, rows = batch_size, 0
        if generation.temperature > 0 or media.max_memory is not None:
            self.batch_size = rows = 1
        self.cache: FeatureCache | None = None
        if cache is not None:
            most = parse_bytes(cache_size)
            self.cache = FeatureCache(Path(cache), assistant.model, max_bytes=most)
        own = fingerprint(assistant.model, assistant.processor)
        provenance = {
            "seed": generation.seed,
            "model": {"name": assistant.name, "fingerprint": own},
            "versions": {
                "omni": omni.__version__,
                **{name: version(name) for name in ("torch", "transformers")},
            },
        }
        self.timeout_s = timeout_s
        self.opener: Opener | None = None
        self.summary = Summary()
        file = None if out is None else Path(out)
        if file is not None:
            check_ours(file)
            check_format(file)
        # The journal first: it refuses a file that another run is writing.
        self.results = Results(file, provenance, self.summary, forget_errors=retry_errors)
        self.writer: Writer | None = None
        if file is not None:
            try:
                self.writer = open_writer(file)
            except OSError as error:
                self.results.close()  # which unlocks the journal
                raise RequestError(
                    f"{file}: cannot be written ({error.strerror or error}); choose another --out."
                ) from error
        settings = settings_of(media, generation)
        settings |= {name: options.get(name) for name in ("thinking", "tools")}
        self.tasks = TaskSource(
            self.source,
            asked,
            processor=assistant.processor,
            journal=self.results.journal,
            open_media=self._open,
            fingerprint=own,
            settings=settings,
            schema=generation.schema,
            shard=self.shard,
            per_page=per == "page",
            chunk_s=chunk_s,
            combine=combine,
        )
        self.awaited: set[str] = set()  # keys of what is opened and not yet answered
        self.stop = Stop()  # of what the model is at
        self.answerer = Answerer(
            assistant,
            self.results,
            open_media=self._open,
            options={name: value for name, value in options.items() if name != "schema"},
            cache=self.cache,
            batch_size=self.batch_size,
            rows=rows,
            at_once=self.workers,
            instruction=combine or "",
            halves=self.tasks.halves,
            stop=self.stop,
        )
        self.records = self._run()

    def __next__(self) -> dict[str, Any]:
        """The next record."""
        return next(self.records)

    def count_items(self) -> int | None:
        """How many items there will be; None if only running would tell."""
        if self.shard is None:
            return self.source.count()
        if self.source.count() is None:
            return None
        return sum(in_shard(item.name, self.shard) for item in self.source)

    def close(self) -> None:
        """Stop; what is finished stays in the journal."""
        self.records.close()
        self._release()

    def _release(self) -> None:
        if self.opener is not None:
            decoders.keep(self.assistant, self.opener.decoder)
            self.opener = None
        self.results.close()
        if self.writer is not None:
            self.writer.discard()

    def _run(self) -> Generator[dict[str, Any]]:
        self.begin = time.perf_counter()
        self.item: Item | None = None
        decoder = decoders.borrow(self.assistant, self.timeout_s)
        self.opener = Opener(decoder, self.assistant.processor.limits, self.cache)
        model = model_threads(self.workers)
        before: tuple[list[Task], list[Future[None]]] | None = None
        try:
            for window in self._windows():
                groups = find_groups(window, self.batch_size, at_once=self.workers)
                answered = [model.submit(self.answerer.answer_group, group) for group in groups]
                if combining := [task for task in window if task.parts]:
                    # Its turn comes when the groups before it have begun, so it can wait for them.
                    # Parts may be in the window before: those of older ones are answered.
                    parts = (*(before[1] if before is not None else ()), *answered)
                    answered.append(model.submit(self.answerer.combine, combining, parts))
                following = (window, answered)
                if before is not None:
                    yield from self._records(*before, model)
                before = following
            if before is not None:
                yield from self._records(*before, model)
            if self.writer is not None:
                self.writer.finish()
                self.writer = None
        finally:
            self.stop.request()
            model.shutdown(cancel_futures=True)
            self._release()

    def _windows(self) -> Iterator[list[Task]]:
        """Tasks in order, in windows whose opened media are little enough to hold."""
        window: list[Task] = []
        held, waiting, known = 0, 0, 0
        full = self.batch_size
        for _, tasks in groupby(self.tasks, key=lambda task: (id(task.item), task.span)):
            lot = Lot(tasks)
            new = [t for t in lot if self.results.find(t) is None and t.key not in self.awaited]
            known += len(lot)
            if new and (error := new[0].error) is not None:
                for task in new:
                    self.results.fail(task, error)
            elif new and not new[0].parts:
                self.awaited.update(task.key for task in new)
                held, waiting = held + self.answerer.prepare(new), waiting + 1
                known -= len(new)
            window += lot
            if waiting >= full or held > HELD_BYTES or known >= MAX_KNOWN_TASKS:
                yield window
                window, held, waiting, known = [], 0, 0, 0
                if self.batch_size > 1:
                    full = min(2 * full, GROUPS_AHEAD * self.batch_size)
        if window:
            yield window

    def _open(self, path: str, content: str | None) -> Media:
        assert self.opener is not None
        return self.opener(path, content)

    def _records(
        self, window: Sequence[Task], answered: Sequence[Future[None]], model: ThreadPoolExecutor
    ) -> Iterator[dict[str, Any]]:
        """The records of a window, as soon as it is answered."""
        for group in answered:
            group.result()
        self.awaited.difference_update(task.key for task in window)
        for task in window:
            if self.results.find(task) is None:  # an equal file before it has failed
                model.submit(self.answerer.answer_again, task).result()
            found = self.results.find(task)
            assert found is not None
            record = make_record(task, found)
            if self.writer is not None:
                self.writer.add(record)
            self.summary.items += task.item is not self.item
            self.item = task.item
            self.summary.count(record)
            self.summary.seconds = time.perf_counter() - self.begin
            yield record
