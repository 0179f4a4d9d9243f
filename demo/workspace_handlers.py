"""What happens in a workspace: plans, previews, answers, answers by time.

Each question is about one file and knows of no other. A second question about the same file, read
with the same settings, goes on from what was read: `omni.Conversation`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr

from demo.models import Loaded, Models
from demo.seen import whole_ledger
from demo.token_panel import TokenControls
from demo.visitors import Visitor, Visitors
from omni.attribution import media_support
from omni.conversation import STOPPED, Conversation
from omni.errors import OmniError, StoppedError
from omni.panels import (
    evidence_panel,
    ledger_panel,
    message_panel,
    plan_panel,
    preview_panel,
    transcript_panel,
)
from omni.reply import Reply
from omni.transcript import transcribe

NO_MEDIUM = "Choose a file first, or one of the examples."
NO_QUESTION = "Write a question first."
READ_BEFORE = "This file has been read with these settings: the next question starts from there."
MOST_PAGES = 12  # of which the sources of an answer are looked for; each is one reading more
SPARE_TOKENS = 2  # beside the question: a budget is met as the plan says

Update = Any


class WorkspaceHandlers:
    """Handlers of one workspace.

    Args:
        name: Of the workspace; under it the visitor keeps what was read.
        models: What may answer.
        visitors: What is kept for each browser tab.
        controls: How the file is read.
    """

    def __init__(
        self, name: str, models: Models, visitors: Visitors, controls: TokenControls
    ) -> None:
        self.name = name
        self.models = models
        self.visitors = visitors
        self.controls = controls

    def _enter(self, visit: gr.Request) -> tuple[Visitor, Loaded]:
        visitor = self.visitors.of(visit.session_hash)
        return visitor, self.models.get(visitor.choice)

    def _reading(self, visitor: Visitor, loaded: Loaded) -> Conversation:
        """What the visitor has read here, with the model that answers now."""
        kept = visitor.things.get(self.name)
        if not isinstance(kept, Conversation) or kept.assistant is not loaded.assistant:
            kept = Conversation(loaded.assistant, max_sessions=1, question_tokens=SPARE_TOKENS)
            visitor.things[self.name] = kept
        return kept

    def _refusal(self, error: OmniError) -> str:
        return f"Not answered. {self.visitors.without_folder(str(error))}"

    # ---------------------------------------------------------------- before the question

    def plan(self, visit: gr.Request, path: str | None, question: str, *values: Any) -> str:
        """What the question will cost; no model runs."""
        return self._drawn(visit, path, question, values, with_preview=False)[0]

    def preview(
        self, visit: gr.Request, path: str | None, question: str, *values: Any
    ) -> tuple[str, str, str, str]:
        """The plan, and the file as the model will get it; ledger and answer are emptied."""
        return *self._drawn(visit, path, question, values, with_preview=True), "", ""

    def _drawn(
        self,
        visit: gr.Request,
        path: str | None,
        question: str,
        values: Sequence[Any],
        *,
        with_preview: bool,
    ) -> tuple[str, str]:
        visitor, loaded = self._enter(visit)
        if not path:
            return message_panel(NO_MEDIUM), ""
        options = self.controls.options(values)

        def draw() -> tuple[str, str]:
            stream = loaded.assistant.stream(question or "", Path(path), **options)
            plan = plan_panel(stream.plan, loaded.pace.estimate(stream.plan))
            if self._reading(visitor, loaded).has_read(Path(path), **options):
                plan += message_panel(READ_BEFORE)
            return plan, preview_panel(stream.request) if with_preview else ""

        try:
            self.visitors.add_files(visitor, [path])
            return self.models.draw(draw)
        except OmniError as error:
            return message_panel(self.visitors.without_folder(str(error))), ""

    # ---------------------------------------------------------------- answers

    def answer(
        self, visit: gr.Request, path: str | None, question: str, *values: Any
    ) -> Iterator[tuple[Update, Update, Update]]:
        """The answer as it grows, then evidence and ledger."""
        yield from self._answer(visit, path, question, values, find_sources=False)

    def answer_with_sources(
        self, visit: gr.Request, path: str | None, question: str, find_sources: bool, *values: Any
    ) -> Iterator[tuple[Update, Update, Update]]:
        """The answer as it grows, then evidence and ledger, then the pages it comes from."""
        yield from self._answer(visit, path, question, values, find_sources=find_sources)

    def _answer(
        self,
        visit: gr.Request,
        path: str | None,
        question: str,
        values: Sequence[Any],
        *,
        find_sources: bool,
    ) -> Iterator[tuple[Update, Update, Update]]:
        if not path or not (question or "").strip():
            yield NO_QUESTION if path else f"Not answered. {NO_MEDIUM}", gr.skip(), gr.skip()
            return
        visitor, loaded = self._enter(visit)
        options, stop = self.controls.options(values), visitor.start(self.name)
        conversation = self._reading(visitor, loaded)
        conversation.rollback(0)
        text = ""
        yield text, gr.skip(), ""
        try:
            self.visitors.add_files(visitor, [path])
            pieces = conversation.stream(question, Path(path), **options)
            for piece in self.models.run(self.visitors.reading(pieces), stop):
                text += piece
                yield text, gr.skip(), gr.skip()
            reply = conversation.reply
            assert reply is not None
            ledger = whole_ledger(conversation, reply)
            loaded.pace.note(ledger)
            costs = ledger_panel(ledger)
            yield reply.text, self.models.draw(evidence_panel, reply), costs
            if find_sources and _has_several_pages(reply):
                supports = self.models.work(
                    media_support,
                    loaded.assistant,
                    question,
                    Path(path),
                    answer=reply.text,
                    stop=stop,
                    **options,
                )
                yield reply.text, self.models.draw(evidence_panel, reply, supports), costs
        except StoppedError:
            yield text or STOPPED, gr.skip(), gr.skip()
        except OmniError as error:
            yield self._refusal(error), gr.skip(), gr.skip()

    def transcribe(
        self, visit: gr.Request, path: str | None, question: str, chunk_s: float, *values: Any
    ) -> Iterator[tuple[Update, Update]]:
        """The same question about every stretch of the file: a table that grows, and its rows."""
        if not path or not (question or "").strip():
            yield message_panel(NO_QUESTION if path else NO_MEDIUM), []
            return
        visitor, loaded = self._enter(visit)
        options = self.controls.options(values)
        try:
            self.visitors.add_files(visitor, [path])
            passages = transcribe(
                loaded.assistant, question, Path(path), chunk_s=float(chunk_s or 0), **options
            )
            for found in self.models.run(passages, visitor.start(self.name)):
                yield transcript_panel(found), [asdict(passage) for passage in found]
        except StoppedError:
            return
        except OmniError as error:
            yield message_panel(self._refusal(error)), []

    def stop(self, visit: gr.Request, answer: str) -> str:
        """End what is being answered, wherever the model is; what has been said stays."""
        self.visitors.of(visit.session_hash).stop(self.name)
        return answer or STOPPED


def _has_several_pages(reply: Reply) -> bool:
    pages = [entry for entry in reply.evidence if entry["modality"] == "image"]
    return bool(reply.text.strip()) and 2 <= len(pages) <= MOST_PAGES
