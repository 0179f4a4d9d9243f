"""One request to a model: the answer piece by piece, then the reply with ledger and evidence."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from omni.choosing import GenerationOptions
from omni.encoding import StageTimes, source_layout
from omni.evidence import make_evidence
from omni.footprint import Runtime
from omni.generation import Prefilled, generate, prefill
from omni.inputs import OmniInputs
from omni.ledger import Ledger, add_times, make_ledger
from omni.prompt import Message
from omni.reply import Reply
from omni.session_stream import Answerer
from omni.text_reader import TextReader
from omni.views import Request


class AnswerStream(Iterator[str]):
    """One request from its prompt to the reply; iterating runs the model and yields visible text.

    Args:
        assistant: Who answers.
        messages: What is asked.
        options: Of `Assistant.chat`, for reports.
        inputs: The prompt, prepared from these.
        generation: How to answer.
        start: When its preparation began (`time.perf_counter`).
    """

    def __init__(
        self,
        assistant: Answerer,
        messages: Sequence[Message],
        options: Mapping[str, Any],
        *,
        inputs: OmniInputs,
        generation: GenerationOptions,
        start: float,
    ) -> None:
        self.assistant, self.messages, self.options = assistant, messages, options
        self.inputs, self.generation, self.start = inputs, generation, start
        self.reader = TextReader(assistant.processor, bool(options.get("thinking")))
        self.times = StageTimes()
        self.prompt: Prefilled | None = None
        self.marks = {"prepare": time.perf_counter() - self.start}
        self.pieces = self._run()

    def __next__(self) -> str:
        """The next piece of text."""
        return next(self.pieces)

    @property
    def plan(self) -> Ledger:
        """The ledger as `Assistant.plan` gives it: what a budget lowered stands there."""
        return make_request_ledger(self.assistant, self.inputs, self.generation.max_new_tokens)

    def _run(self) -> Iterator[str]:
        assistant = self.assistant
        begin = time.perf_counter()
        self.prompt = prefill(
            assistant.model,
            self.inputs,
            times=self.times,
            answer_tokens=self.generation.max_new_tokens,
        )
        self.marks["prefill"] = time.perf_counter() - begin
        begin = time.perf_counter()
        steps = generate(
            assistant.model,
            self.prompt,
            self.generation,
            assistant.vocabulary,
            thinking=self.reader.is_thinking,
        )
        yield from self.reader.read(steps, self.prompt.ended)
        self.marks["decode"] = time.perf_counter() - begin
        self.marks["total"] = time.perf_counter() - self.start

    def reply(self) -> Reply:
        """The reply, after the last piece."""
        assert self.prompt is not None
        ledger = make_request_ledger(self.assistant, self.inputs, self.reader.num_tokens)
        add_times(ledger, self.times)
        ledger.seconds = {name: round(seconds, 4) for name, seconds in self.marks.items()}
        return Reply(
            text=self.reader.text,
            reasoning=self.reader.reasoning,
            finish_reason=self.reader.finish_reason,
            parsed=self.reader.parse(self.generation.schema),
            ledger=ledger,
            evidence=make_evidence(
                self.inputs.media,
                [source_layout(self.assistant.model, item) for item in self.inputs.media],
                self.prompt.layouts,
            ),
            request=self.request,
        )

    @property
    def request(self) -> Request:
        """What is asked, with the media that the prompt was built for; also before it runs."""
        config = self.assistant.model.config
        return Request(
            question=_question(self.messages),
            model=self.assistant.name,
            settings={**asdict(self.generation), **self.options, "schema": self.generation.schema},
            media=self.inputs.media,
            pixel_mean=config.norm_mean,
            pixel_std=config.norm_std,
        )


def make_request_ledger(assistant: Answerer, inputs: OmniInputs, answer_tokens: int) -> Ledger:
    """The ledger of a prompt and its answer.

    Args:
        assistant: Who answers.
        inputs: The prompt.
        answer_tokens: Tokens of the answer, so far or at most.
    """
    return make_ledger(
        assistant.model.config,
        inputs,
        context_tokens=assistant.processor.settings.max_model_len,
        answer_tokens=answer_tokens,
        runtime=Runtime.of(assistant.model),
    )


def _question(messages: Sequence[Message]) -> str:
    """Text of the last user turn."""
    turns = [message for message in messages if message.get("role") == "user"] or messages[-1:]
    content = turns[-1].get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(str(part["text"]) for part in content if part.get("type") == "text")
