"""From items to tasks: which question is asked about which part of which item, and its name."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from omni.batching.identity import as_text, short_hash, task_key
from omni.batching.items import Item, ItemSource, content_hash, in_shard
from omni.batching.journal import Journal
from omni.batching.lots import Task
from omni.batching.questions import Question
from omni.batching.spans import Span, find_spans
from omni.errors import RequestError
from omni.media import Media
from omni.processor import OmniProcessor


class TaskSource:
    """Tasks of a batch, in the order of the records.

    Args:
        items: What is asked about.
        questions: Asked about every item whose row has none of its own.
        processor: Whose limits hold.
        journal: Remembers the parts of items, so that they need not be opened again.
        open_media: Opens one file, whose bytes are named.
        fingerprint: Of model and processor.
        settings: Of answers, which their keys depend on.
        schema: Of the answers to questions without one.
        shard: Which items are taken: the i-th of every n.
        per_page: Ask about each page of a document.
        chunk_s: Ask about each so many seconds of recordings and videos.
        combine: What to do with the answers about the parts of an item.
    """

    def __init__(
        self,
        items: ItemSource,
        questions: Sequence[Question],
        *,
        processor: OmniProcessor,
        journal: Journal,
        open_media: Callable[[str, str], Media],
        fingerprint: str,
        settings: Mapping[str, Any],
        schema: Any,
        shard: tuple[int, int] | None,
        per_page: bool,
        chunk_s: float | None,
        combine: str | None,
    ) -> None:
        self.items, self.questions, self.shard = items, tuple(questions), shard
        self.processor, self.journal, self.open_media = processor, journal, open_media
        self.fingerprint, self.settings, self.schema = fingerprint, settings, schema
        self.per_page, self.chunk_s, self.combine = per_page, chunk_s, combine

    def __iter__(self) -> Iterator[Task]:
        """Tasks; an item that cannot be read gives one for each question, with the error."""
        for item in self.items:
            if self.shard is not None and not in_shard(item.name, self.shard):
                continue
            questions = tuple(Question(text=text) for text in item.questions) or self.questions
            error: Exception | None = item.error
            sha256: str | None = None
            spans: list[Span | None] = [None]
            if error is None and not questions:
                error = RequestError("The row has no question, and the batch has none for all.")
            if error is None:
                try:
                    limits, roots = self.processor.limits, self.processor.allowed_roots
                    sha256 = content_hash(item.paths, limits, roots)
                    if not self._has_failed(item, sha256, questions):
                        spans = self._spans(item, sha256)
                except Exception as caught:
                    error = caught
            questions = questions or (Question(text=""),)
            parts: list[list[Task]] = [[] for _ in questions]
            for span in spans:
                for number, question in enumerate(questions):
                    task = self._task(item, sha256, span, question)
                    task.error = error
                    parts[number].append(task)
                    yield task
            if self.combine is not None and spans != [None]:
                for question, tasks in zip(questions, parts, strict=True):
                    yield self._task(item, sha256, None, question, tuple(tasks))

    def halves(self, task: Task) -> tuple[Task, Task]:
        """Two tasks that combine half of the answers each, where one prompt is too short for all.

        Args:
            task: Has at least four parts.
        """
        middle = len(task.parts) // 2
        return self._half(task, task.parts[:middle]), self._half(task, task.parts[middle:])

    def _half(self, task: Task, parts: tuple[Task, ...]) -> Task:
        first, last = parts[0].span, parts[-1].span
        assert first is not None
        assert last is not None
        question = Question(text=task.question, field=task.field, schema=task.schema)
        return self._task(task.item, task.sha256, first.to(last), question, parts)

    def _task(
        self,
        item: Item,
        sha256: str | None,
        span: Span | None,
        question: Question,
        parts: tuple[Task, ...] = (),
    ) -> Task:
        schema = self.schema if question.schema is None else question.schema
        asked = question.text
        if parts:
            # Named anew: answers without "of all" may stand on some of the parts only.
            asked = short_hash(["of all", self.combine, asked, *(part.key for part in parts)])
        key = task_key(
            sha256=sha256 or f"unreadable {item.name}",
            span=span,
            question=asked,
            fingerprint=self.fingerprint,
            settings={**self.settings, "schema": as_text(schema)},
        )
        return Task(
            item=item,
            sha256=sha256,
            span=span,
            question=question.text,
            field=question.field,
            schema=schema,
            parts=parts,
            key=key,
            # What is too long as a whole may be answered in parts: then it is tried again.
            error_key=short_hash([key, item.name, self.per_page, self.chunk_s]),
        )

    def _has_failed(self, item: Item, sha256: str, questions: Sequence[Question]) -> bool:
        """Whether the journal knows that an item cannot even be opened."""
        tasks = [self._task(item, sha256, None, question) for question in questions]
        return all(task.error_key in self.journal for task in tasks)

    def _spans(self, item: Item, sha256: str) -> list[Span | None]:
        if len(item.paths) > 1 or not (self.per_page or self.chunk_s is not None):
            return [None]
        key = short_hash(["spans", sha256, self.per_page, self.chunk_s])
        known = self.journal.get(key)
        if known is None:
            media = self.open_media(item.paths[0], sha256)
            spans = find_spans(media, per_page=self.per_page, chunk_s=self.chunk_s)
            known = {"spans": [None if span is None else span.to_dict() for span in spans]}
            self.journal.add(key, known)
        return [Span.from_dict(values) for values in known["spans"]]
