"""The same batch on a Ray cluster: actors that each hold the model and decode in their own child.

1. The driver finds the items; only their names and paths travel.
2. Ray Data gives them, a few at a time, to a pool of actors (`Answers`), each with the model.
3. The driver takes the records in the order of the items and writes them.

An actor whose process dies is started again by Ray, and the items it had are answered again.
"""

import json
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import omni
from omni import errors
from omni.assistant import Assistant
from omni.batching.items import Item, ItemSource, in_shard, parse_shard
from omni.batching.output import Writer, as_line, open_writer
from omni.batching.run import BatchRun
from omni.batching.summary import Summary
from omni.errors import OmniError, RequestError

ITEMS_AT_A_TIME = 16  # given to an actor; what is lost, and done again, when it dies


class Answers:
    """Answers questions about the items of a batch of rows; for ``map_batches`` of Ray Data.

        ds.map_batches(Answers, fn_constructor_args=["What is this?"], concurrency=2, batch_size=16)

    Args:
        questions: As in `omni.batch`.
        model: A directory or a hub id; None is the embedded checkpoint.
        load: Options of `omni.load`.
        options: Those of `omni.batching.BatchRun` that concern an answer, and of
            `omni.Assistant.chat`.
    """

    def __init__(
        self,
        questions: Any = (),
        *,
        model: str | Path | None = None,
        load: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.questions = questions
        self.assistant = omni.load(model, **(load or {}))
        self.options = options

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[str]]:
        """Answer.

        Args:
            batch: Columns; ``path``, and any others of a manifest's.

        Returns:
            One column, ``record``: the records as JSON text, one for each item, part and question.
        """
        if "omni_item" in batch:
            items: list[Any] = [_from_text(str(text)) for text in batch["omni_item"]]
        else:
            names = list(batch)
            rows = zip(*(_plain(batch[name]) for name in names), strict=True)
            items = [dict(zip(names, row, strict=True)) for row in rows]
        run = BatchRun(items, self.questions, assistant=self.assistant, **self.options)
        return {"record": [as_line(record).decode() for record in run]}


class RayRun(Iterator[dict[str, Any]]):
    """A batch whose items are answered by actors; iterate it for the records.

    The records are those of `BatchRun`. There is no journal: a run that was stopped begins anew.

    Args:
        items: As in `BatchRun`.
        questions: As in `BatchRun`.
        model: A directory or a hub id that every node can read; None is the embedded checkpoint.
        load: Options of `omni.load`.
        out: Result file, ``.jsonl`` or ``.parquet``, which is not there yet.
        shard: As in `BatchRun`.
        expand: As in `BatchRun`.
        workers: Actors; None is two.
        options: As in `BatchRun`.

    Raises:
        RequestError: Ray is not installed, or an option, a path, a pattern or a manifest is wrong.
    """

    def __init__(
        self,
        items: Any,
        questions: Any = (),
        *,
        model: Assistant | str | Path | None = None,
        load: Mapping[str, Any] | None = None,
        out: str | Path | None = None,
        shard: str | tuple[int, int] | None = None,
        expand: bool = False,
        retry_errors: bool = False,
        workers: int | None = None,
        **options: Any,
    ) -> None:
        self.ray = _import_ray()
        if isinstance(model, Assistant):
            raise RequestError(
                "With engine='ray' every actor loads the model; pass its directory or id as "
                "model=..., not a loaded one."
            )
        if retry_errors:
            raise RequestError("engine='ray' keeps no journal, so there are no errors to retry.")
        if out is not None and Path(out).exists():
            raise RequestError(
                f"{out} is there, and engine='ray' keeps no journal by which to tell whether a "
                "batch has made it. Choose another out, or move the file away."
            )
        workers = 2 if workers is None else workers
        if workers < 1:
            raise RequestError(f"workers is {workers}; expected at least 1.")
        self.source = ItemSource(items, expand=expand)
        self.shard = parse_shard(shard) if isinstance(shard, str) else shard
        self.workers = workers
        self.arguments = {"questions": questions, "model": model, "load": load, **options}
        self.summary = Summary()
        self.writer: Writer | None = None if out is None else open_writer(Path(out))
        self.records = self._run()

    def __next__(self) -> dict[str, Any]:
        """The next record."""
        return next(self.records)

    def count_items(self) -> int | None:
        """How many items there will be; None if only running would tell."""
        return None if self.shard is not None else self.source.count()

    def close(self) -> None:
        """Stop; nothing is kept."""
        self.records.close()
        if self.writer is not None:
            self.writer.discard()

    def _run(self) -> Generator[dict[str, Any]]:
        begin = time.perf_counter()
        rows = [{"omni_item": _to_text(item)} for item in self.source if self._is_ours(item)]
        self.summary.items = len(rows)
        try:
            for record in self._answers(rows) if rows else ():
                if self.writer is not None:
                    self.writer.add(record)
                self.summary.count(record)
                self.summary.computed += 1
                self.summary.seconds = time.perf_counter() - begin
                yield record
            if self.writer is not None:
                self.writer.finish()
        finally:
            if self.writer is not None:
                self.writer.discard()
                self.writer = None

    def _answers(self, rows: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
        data = self.ray.data
        data.DataContext.get_current().execution_options.preserve_order = True
        each = min(ITEMS_AT_A_TIME, -(-len(rows) // self.workers))
        answered = data.from_items(rows, override_num_blocks=-(-len(rows) // each)).map_batches(
            Answers,
            fn_constructor_kwargs=self.arguments,
            concurrency=self.workers,
            batch_size=each,
            num_cpus=1,
        )
        for row in answered.iter_rows():
            yield json.loads(row["record"])

    def _is_ours(self, item: Item) -> bool:
        return self.shard is None or in_shard(item.name, self.shard)


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise RequestError(
            "engine='ray' needs Ray; pip install 'omni-toolkit[ray]', or leave the engine 'local'."
        ) from error
    return ray


def _plain(column: Sequence[Any]) -> list[Any]:
    return column.tolist() if hasattr(column, "tolist") else list(column)


def _to_text(item: Item) -> str:
    error = None if item.error is None else [type(item.error).__name__, str(item.error)]
    return json.dumps([item.name, item.paths, item.questions, dict(item.row), error])


def _from_text(text: str) -> Item:
    name, paths, questions, row, error = json.loads(text)
    found: OmniError | None = None if error is None else getattr(errors, error[0])(error[1])
    return Item(name=name, paths=tuple(paths), questions=tuple(questions), row=row, error=found)
