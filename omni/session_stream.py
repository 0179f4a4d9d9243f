"""One question to media that were read before: its own tokens, and an answer piece by piece."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch

from omni.backbone.cache import CacheSnapshot
from omni.budget import readable_bytes
from omni.choosing import GenerationOptions, Vocabulary
from omni.errors import ContextLengthError, RequestError
from omni.evidence import MediaEvidence
from omni.footprint import Runtime
from omni.generation import continue_prompt, generate
from omni.inputs import MediaItem
from omni.ledger import Ledger, continue_ledger
from omni.model import OmniModel
from omni.processor import OmniProcessor
from omni.prompt import MARKER, Message, flatten_messages
from omni.reply import Reply
from omni.text_reader import TextReader
from omni.views import Request


@runtime_checkable
class Answerer(Protocol):
    """What a session needs of an `omni.Assistant`."""

    model: OmniModel
    processor: OmniProcessor
    name: str
    vocabulary: Vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What a session has read; all of its forks share it.

    Attributes:
        prefix: The rendered prompt up to the last medium, with markers.
        system: The system prompt; None without.
        content: The user turn of the last medium, up to it, with markers.
        ledger: What opening took.
        evidence: What of every medium was kept, merged and dropped.
        generation: How to answer, unless a question says otherwise.
        thinking: Likewise, whether to reason first.
        tools: Function declarations.
        settings: Media options that it was opened with, for reports.
        media: The items, for reports; empty in a session that was loaded.
        earlier: Turns between the system prompt and that of the last medium, with markers.
    """

    prefix: str
    system: str | None
    content: str
    ledger: Ledger
    evidence: list[MediaEvidence]
    generation: GenerationOptions
    thinking: bool = False
    tools: Sequence[Mapping[str, Any]] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    media: Sequence[MediaItem] = ()
    earlier: Sequence[Message] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, without the media."""
        values = {name: getattr(self, name) for name in self.__slots__ if name != "media"}
        values |= {"ledger": self.ledger.to_dict(), "generation": asdict(self.generation)}
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Opened":
        """What `to_dict` gave."""
        ledger = Ledger.from_dict(values["ledger"])
        generation = GenerationOptions(**values["generation"])
        return cls(**{**values, "ledger": ledger, "generation": generation})


class SessionStream(Iterator[str]):
    """One question to a session; iterating runs the model and yields visible text.

    The question is checked when this is made.
    """

    def __init__(
        self,
        assistant: Answerer,
        opened: Opened,
        snapshot: CacheSnapshot,
        question: str,
        history: Sequence[tuple[str, str]],
        options: Mapping[str, Any],
    ) -> None:
        start = time.perf_counter()
        self.assistant, self.opened, self.snapshot = assistant, opened, snapshot
        self.question = question
        self.generation, self.thinking = self._settle(options)
        assistant.vocabulary.check_schema(self.generation, self.thinking)
        self.input_ids = self._read_on(question, history)
        self.reader = TextReader(assistant.processor, self.thinking)
        self._check_fit()
        self.marks = {"prepare": time.perf_counter() - start}
        ended: set[int] = set()
        steps = _steps(
            assistant,
            snapshot,
            self.input_ids,
            self.generation,
            self.thinking,
            ended,
            self.marks,
            start,
        )
        self.pieces = self.reader.read(steps, ended)

    def __next__(self) -> str:
        """The next piece of text."""
        return next(self.pieces)

    @property
    def plan(self) -> Ledger:
        """The ledger without times, with room for the longest answer."""
        return self._ledger(self.generation.max_new_tokens)

    def finish(self) -> Reply:
        """Take all pieces that are left; return the reply."""
        for _ in self:
            pass
        return self.reply()

    def reply(self) -> Reply:
        """The reply, after the last piece."""
        opened = self.opened
        ledger = self._ledger(self.reader.num_tokens)
        ledger.seconds = {name: round(seconds, 4) for name, seconds in self.marks.items()}
        return Reply(
            text=self.reader.text,
            reasoning=self.reader.reasoning,
            finish_reason=self.reader.finish_reason,
            parsed=self.reader.parse(self.generation.schema),
            ledger=ledger,
            evidence=list(opened.evidence),
            request=self._request() if opened.media else None,
        )

    def _settle(self, options: Mapping[str, Any]) -> tuple[GenerationOptions, bool]:
        """The options of this question; what is not set is as the session was opened."""
        opened, rest = self.opened, dict(options)
        thinking = bool(rest.pop("thinking", opened.thinking))
        own = {name: rest.pop(name) for name in GenerationOptions.__slots__ if name in rest}
        if rest:
            raise TypeError(
                f"Unknown option(s) {', '.join(map(repr, rest))} of a question; expected thinking "
                f"or one of {', '.join(sorted(GenerationOptions.__slots__))}. What concerns the "
                "media is set when they are opened."
            )
        return replace(opened.generation, **own), thinking

    def _read_on(self, question: str, history: Sequence[tuple[str, str]]) -> torch.Tensor:
        """Ids of the prompt behind what the session has read."""
        opened, processor = self.opened, self.assistant.processor
        turns: list[dict[str, Any]] = []
        for asked, answered in history:
            turns += [{"role": "user", "content": asked}]
            turns += [{"role": "assistant", "content": answered}]
        turns += [{"role": "user", "content": question}]
        # As a turn that begins with the media as parts.
        texts = (opened.content, f"\n{turns[0]['content']}")
        turns[0] = {"role": "user", "content": [{"type": "text", "text": t} for t in texts]}
        flat, _ = flatten_messages(
            with_system(opened.system, [*opened.earlier, *turns]),
            processor.load_media,
            audio_in_video=False,
        )
        text = processor.render(flat, thinking=self.thinking, tools=opened.tools)
        if not text.startswith(opened.prefix):
            raise RequestError(
                "The chat template writes something else before the media for this question "
                f"(thinking={self.thinking}) than when they were opened. Open them again with the "
                "same options, or ask with assistant.ask."
            )
        rest = text[len(opened.prefix) :]
        if found := MARKER.search(rest):
            raise RequestError(
                f"The text has a media marker, {found.group()!r}, but all media of a session come "
                "before it. Leave markers out of the text; open media together to ask about them."
            )
        return torch.tensor([processor.tokenise(rest)], dtype=torch.long)

    def _check_fit(self) -> None:
        """Refuse what does not fit the context, or the budget that the session was opened with."""
        opened, plan = self.opened, self.plan
        budget = opened.ledger.budget
        limit = self.assistant.processor.settings.max_model_len
        if budget is not None:
            limit = min(limit, budget.max_tokens)
        if plan.prompt_tokens + plan.answer_tokens > limit:
            raise ContextLengthError(
                f"The session has read {plan.reused_tokens} tokens; with "
                f"{plan.prompt_tokens - plan.reused_tokens} of this question and room for "
                f"{plan.answer_tokens} of an answer that is more than {limit}. Ask shorter, lower "
                "max_new_tokens, or open the media with more question_tokens."
            )
        most_bytes = None if budget is None else budget.max_memory_bytes
        if most_bytes is not None and plan.memory_bytes > most_bytes:
            raise ContextLengthError(
                f"With this question the session needs {readable_bytes(plan.memory_bytes)}, but "
                f"its budget is {readable_bytes(most_bytes)}. Ask shorter, lower max_new_tokens, "
                "or open the media with a larger max_memory."
            )

    def _ledger(self, answer_tokens: int) -> Ledger:
        assistant = self.assistant
        return continue_ledger(
            assistant.model.config,
            self.opened.ledger,
            new_tokens=self.input_ids.shape[1],
            answer_tokens=answer_tokens,
            context_tokens=assistant.processor.settings.max_model_len,
            runtime=Runtime.of(assistant.model),
        )

    def _request(self) -> Request:
        assistant, opened = self.assistant, self.opened
        config = assistant.model.config
        return Request(
            question=self.question,
            model=assistant.name,
            settings={**asdict(self.generation), **opened.settings, "thinking": self.thinking},
            media=opened.media,
            pixel_mean=config.norm_mean,
            pixel_std=config.norm_std,
        )


def _steps(
    assistant: Answerer,
    snapshot: CacheSnapshot,
    input_ids: torch.Tensor,
    generation: GenerationOptions,
    thinking: bool,
    ended: set[int],
    marks: dict[str, float],
    start: float,
) -> Iterator[list[tuple[int, int]]]:
    """Read a question behind a snapshot and answer it; note the seconds, and whether it ended.

    No method: a stream that is given up must end at once, and free its place behind the snapshot,
    which it would not if stream and generator referred to each other.
    """
    begin = time.perf_counter()
    cache = assistant.model.new_cache(1)
    assert cache is not None
    cache.restore(snapshot)
    try:
        prompt = continue_prompt(assistant.model, cache, input_ids)
        prompt.ended = ended
        marks["prefill"] = time.perf_counter() - begin
        begin = time.perf_counter()
        yield from generate(
            assistant.model, prompt, generation, assistant.vocabulary, thinking=thinking
        )
    finally:
        cache.rewind(snapshot)
    marks["decode"] = time.perf_counter() - begin
    marks["total"] = time.perf_counter() - start


def with_system(system: str | None, turns: list[Message]) -> list[Message]:
    """The turns after a system prompt, if there is one."""
    return turns if system is None else [{"role": "system", "content": system}, *turns]
