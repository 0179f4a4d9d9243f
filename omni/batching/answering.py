"""From tasks to results: media are opened, prompts built, groups of them answered.

What fails is a result, too: it takes nothing with it. A group that fails is answered part by part.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from omni.assistant import Assistant
from omni.batching.combining import combined_prompt
from omni.batching.lots import Lot, Task, find_groups
from omni.batching.opening import held_bytes
from omni.batching.results import Results
from omni.batching.spans import cut
from omni.errors import ContextLengthError, MediaError, StoppedError
from omni.feature_cache import FeatureCache
from omni.media import Media
from omni.stopping import Stop, check_stop, stoppable


class Answerer:
    """Answers tasks; threads may share it, each with tasks of its own.

    Args:
        assistant: Who answers.
        results: Where answers and errors go.
        open_media: Opens one file, whose bytes are named.
        options: Those of `Assistant.chat`.
        cache: Keeps what the encoders gave.
        batch_size: Media whose questions are answered together.
        rows: Prompts of a batch at most; 0 leaves it to the assistant.
        at_once: Groups that are answered at the same time.
        instruction: What to do with the answers that a task combines.
        halves: Makes two tasks of one that combines too many.
        stop: Ends what the model is at.
    """

    def __init__(
        self,
        assistant: Assistant,
        results: Results,
        *,
        open_media: Callable[[str, str | None], Media],
        options: Mapping[str, Any],
        cache: FeatureCache | None,
        batch_size: int,
        rows: int,
        at_once: int,
        instruction: str,
        halves: Callable[[Task], tuple[Task, Task]],
        stop: Stop,
    ) -> None:
        self.assistant, self.results, self.open_media = assistant, results, open_media
        self.options, self.cache = options, cache
        self.batch_size, self.rows, self.at_once = batch_size, rows, at_once
        self.instruction, self.halves, self.stop = instruction, halves, stop

    def prepare(self, tasks: Sequence[Task]) -> int:
        """Open media and build the prompts of all questions about them; errors are results.

        Returns:
            Bytes that the opened media hold.
        """
        begin = time.perf_counter()
        # Of several files the hash is that of all, which names the bytes of none.
        paths = tasks[0].item.paths
        known_as = tasks[0].sha256 if len(paths) == 1 else None
        try:
            media = [cut(self.open_media(path, known_as), tasks[0].span) for path in paths]
        except Exception as error:
            for task in tasks:
                self.results.fail(task, error)
            return 0
        for task in tasks:
            try:
                content = [{"type": "media", "media": medium} for medium in media]
                content.append({"type": "text", "text": task.question})
                turn = {"role": "user", "content": content}
                task.inputs = self.assistant.prepare([turn], **self.options)
                if self.cache is not None:
                    task.inputs = self.cache(task.inputs, f"{task.sha256} {task.span}")
            except Exception as error:
                self.results.fail(task, error)
            task.open_s, begin = time.perf_counter() - begin, time.perf_counter()
        return sum(map(held_bytes, media))

    def answer_group(self, group: Sequence[Lot]) -> None:
        """Answer tasks whose prompts are built.

        Raises:
            StoppedError: `stop` was requested.
        """
        with stoppable(self.stop):
            check_stop()
            self._answer(group)

    def combine(self, tasks: Sequence[Task], parts: Sequence[Future[None]]) -> None:
        """Answer tasks that combine answers.

        Args:
            tasks: Each has parts.
            parts: End when those are answered.
        """
        for part in parts:
            part.result()
        self._answer_combined(tasks)

    def answer_again(self, task: Task) -> None:
        """Answer one task from the start."""
        if task.parts:
            self._answer_combined([task])
            return
        self.prepare([task])
        for group in find_groups([task], self.batch_size, at_once=self.at_once):
            self.answer_group(group)

    def _answer(self, group: Sequence[Lot]) -> None:
        try:
            prompts = [[task.inputs for task in lot if task.inputs is not None] for lot in group]
            schemas = [task.schema for lot in group for task in lot if task.inputs is not None]
            replies = self.assistant.reply_lots(
                prompts, rows=self.rows, schemas=schemas, **self.options
            )
        except StoppedError:
            raise
        except Exception as error:
            if len(group) > 1:  # one of them is to blame: alone, the others get their answers
                for lot in group:
                    self._answer([lot])
            elif len(group[0]) > 1 and not isinstance(error, MediaError):
                for task in group[0]:
                    self._answer([Lot([task])])
            else:
                for task in group[0]:
                    self.results.fail(task, error)
            return
        tasks = [task for lot in group for task in lot]
        for task, reply in zip(tasks, replies, strict=True):
            self.results.add(task, reply, batch=len(tasks))

    def _answer_combined(self, tasks: Sequence[Task]) -> None:
        """Answer what combines answers, when these are there."""
        waiting = {task.key: task for task in tasks if self.results.find(task) is None}
        for task in waiting.values():
            self._prepare_combined(task)
        for group in find_groups(list(waiting.values()), self.batch_size, at_once=self.at_once):
            self.answer_group(group)

    def _prepare_combined(self, task: Task) -> None:
        """Build the prompt of what combines answers; too many are first combined by halves.

        A task with a part that has no result stays as it is: `answer_again` is called after its
        parts have theirs.
        """
        begin = time.perf_counter()
        try:
            found = [(part.span, self.results.find(part)) for part in task.halves or task.parts]
            known = [(span, result) for span, result in found if span and result]
            if len(known) < len(found):  # equal files: a part failed under the other's name
                task.halves = ()
                return
            text = combined_prompt(self.instruction, task.question, known)
            turn = {"role": "user", "content": text}
            task.inputs = self.assistant.prepare([turn], **self.options)
        except ContextLengthError as error:
            if task.halves or len(task.parts) < 4:
                self.results.fail(task, error)
                return
            task.halves = self.halves(task)
            self._answer_combined(task.halves)
            self._prepare_combined(task)
        except Exception as error:
            self.results.fail(task, error)
        task.open_s = time.perf_counter() - begin
