"""Media that are encoded and read once, and asked about any number of times.

    opened   <|im_start|>user ... </img>                        encoded, read, remembered
    asked                               What happens? ... <think></think>    read for each question

What a question to the same media shares with the next ends with the last medium: a special token,
so that no question changes how the text before it is tokenised. The decoder's state there is a
snapshot: Mamba states of constant size, keys and values of the few attention layers. Every
question continues from it, and leaves it as it was.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omni.backbone.cache import CacheSnapshot
from omni.choosing import GenerationOptions
from omni.encoding import StageTimes, source_layout
from omni.errors import RequestError, SessionError
from omni.evidence import MediaEvidence, make_evidence
from omni.footprint import Runtime
from omni.generation import prefill
from omni.identity import model_identity
from omni.ledger import Ledger, add_times, make_ledger
from omni.options import MediaOptions, take
from omni.prompt import MARKER, Message, flatten_messages
from omni.reply import Reply
from omni.saved_session import check_identity, read_session, write_session
from omni.session_stream import Answerer, Opened, SessionStream, with_system

QUESTION_TOKENS = 128  # left for a question, and for what follows it, when media are made to fit


class Session:
    """Media that were read once; from `omni.Assistant.open`. One thread at a time may use it.

    Args:
        assistant: Model and processor.
        opened: What was read.
        snapshot: The decoder's state after it.
        history: Turns of `chat` so far.
    """

    def __init__(
        self,
        assistant: Answerer,
        opened: Opened,
        snapshot: CacheSnapshot,
        history: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.assistant = assistant
        self.opened = opened
        self.snapshot = snapshot
        self.history = list(history)

    def __repr__(self) -> str:
        names = ", ".join(entry.name for entry in self.ledger.media)
        return f"<Session of {self.assistant.name}: {names}; {self.ledger.prompt_tokens:,} tokens>"

    @property
    def ledger(self) -> Ledger:
        """What opening took: tokens, FLOPs, bytes and seconds of the media."""
        return self.opened.ledger

    @property
    def evidence(self) -> list[MediaEvidence]:
        """What of every medium was kept, merged and dropped."""
        return self.opened.evidence

    # ---------------------------------------------------------------- questions

    def ask(self, question: str, **options: Any) -> Reply:
        """Answer a question as a fresh request with the same media would.

        Questions do not know of each other, in whatever order they come.

        Args:
            question: Plain text.
            options: ``GenerationOptions`` and ``thinking``; those left out are as when opened.

        Returns:
            The answer. Its ledger counts the whole prompt, and as ``reused_tokens`` what the
            session had read before; FLOPs and seconds are those of this question alone.

        Raises:
            ContextLengthError: Question and answer do not fit the context or the budget.
            RequestError: The question has a media marker, or the template moved the media.
        """
        return self.stream(question, **options).finish()

    def stream(
        self, question: str, *, history: Sequence[tuple[str, str]] = (), **options: Any
    ) -> "SessionStream":
        """Like `ask`, but yields the answer piece by piece; then ``.reply()`` is the reply.

        Args:
            question: Plain text.
            history: Questions and answers between the media and this question.
            options: As in `ask`.
        """
        return self._ask(question, history, options)

    def chat(self, question: str, **options: Any) -> Reply:
        """Answer with the earlier turns of this dialogue in mind, and remember this one.

        The answer is that of `Assistant.chat` with the same turns. Media are not read again, the
        text of earlier turns is. `ask` neither sees the dialogue nor adds to it.

        Args:
            question: Plain text.
            options: As in `ask`.
        """
        reply = self._ask(question, self.history, options).finish()
        self.history.append((question, reply.text))
        return reply

    def fork(self) -> "Session":
        """A session of the same media whose dialogue goes its own way from here."""
        return Session(self.assistant, self.opened, self.snapshot, self.history)

    def _ask(
        self, question: str, history: Sequence[tuple[str, str]], options: dict[str, Any]
    ) -> SessionStream:
        return SessionStream(self.assistant, self.opened, self.snapshot, question, history, options)

    # ---------------------------------------------------------------- files

    def save(self, path: str | Path) -> None:
        """Write state, ledger, evidence and dialogue to one safetensors file, media not.

        It grows with the keys and values of what was read: ``ledger.kv_cache_bytes`` and
        ``ledger.mamba_state_bytes``. An existing file is replaced when the new one is complete.

        Args:
            path: Where to.

        Raises:
            RequestError: The file cannot be written.
        """
        state = {"opened": self.opened.to_dict(), "history": self.history}
        identity = model_identity(self.assistant.model, self.assistant.processor)
        write_session(path, self.snapshot.tensors(), self.assistant.name, identity, state)

    @classmethod
    def load(cls, path: str | Path, assistant: Answerer) -> "Session":
        """Continue what `save` wrote; see `omni.load_session`."""
        model = assistant.model
        saved = read_session(path, model.device)
        check_identity(path, saved, model_identity(model, assistant.processor), assistant.name)
        try:
            opened = Opened.from_dict(saved.state["opened"])
            history = [(str(asked), str(answered)) for asked, answered in saved.state["history"]]
            length = opened.ledger.prompt_tokens
            cache = model.new_cache(length + QUESTION_TOKENS + opened.generation.max_new_tokens)
            assert cache is not None  # only a session of our decoder has this identity
            cache.load_tensors(saved.tensors, length)
        except (KeyError, TypeError, ValueError) as error:
            raise SessionError(
                f"{path}: its parts do not belong together ({error}). Open the media again."
            ) from error
        return cls(assistant, opened, cache.snapshot(), history)


def open_session(
    assistant: Answerer,
    media: Sequence[Any],
    *,
    system: str | None = None,
    earlier: Sequence[Message] = (),
    question_tokens: int = QUESTION_TOKENS,
    **options: Any,
) -> Session:
    """Encode and read media; see `omni.Assistant.open`.

    1. Build the request as for an empty question, with room for a question and an answer.
    2. Cut it behind the last medium.
    3. Encode and read what is left, and keep the decoder's state.
    """
    start = time.perf_counter()
    model, processor = assistant.model, assistant.processor
    if not model.is_hybrid:
        raise RequestError(
            f"Sessions need the hybrid backbone, whose state can be forked; this model's decoder "
            f"is {model.config.text_config.model_type!r}. Ask with assistant.ask instead."
        )
    if not media:
        raise RequestError("A session found no media to open; pass at least one.")
    rest = dict(options)
    thinking, tools = bool(rest.pop("thinking", False)), rest.pop("tools", None)
    media_options: MediaOptions = take(MediaOptions, rest)
    generation: GenerationOptions = take(GenerationOptions, rest)
    if rest:
        raise TypeError(
            f"Unknown option(s) {', '.join(map(repr, rest))}; expected system, earlier, "
            "question_tokens or one of Assistant.chat's."
        )

    parts = [{"type": "media", "media": source} for source in media]
    flat, marked = flatten_messages(
        with_system(system, [*earlier, {"role": "user", "content": parts}]),
        processor.load_media,
        audio_in_video=media_options.audio_in_video,
    )
    text = processor.render(flat, thinking=thinking, tools=tools)
    room = question_tokens + generation.max_new_tokens
    inputs = processor.from_text(
        text,
        marked,
        options=media_options,
        answer_tokens=room,
        runtime=Runtime.of(model),
    )
    end = max(item.start + item.block_length for item in inputs.media) + 1  # with its delimiter
    inputs = replace(
        inputs,
        input_ids=inputs.input_ids[:, :end],
        attention_mask=inputs.attention_mask[:, :end],
    )
    marks = {"prepare": time.perf_counter() - start}

    times, begin = StageTimes(), time.perf_counter()
    prompt = prefill(model, inputs, times=times, answer_tokens=room)
    marks["prefill"] = time.perf_counter() - begin
    ledger = make_ledger(
        model.config,
        inputs,
        context_tokens=processor.settings.max_model_len,
        answer_tokens=0,
        runtime=Runtime.of(model),
    )
    evidence = make_evidence(
        inputs.media, [source_layout(model, item) for item in inputs.media], prompt.layouts
    )
    marks["total"] = time.perf_counter() - start
    add_times(ledger, times)
    ledger.seconds = {name: round(seconds, 4) for name, seconds in marks.items()}
    opened = Opened(
        prefix=text[: list(MARKER.finditer(text))[-1].end()],
        system=system,
        earlier=flat[0 if system is None else 1 : -1],
        content=flat[-1]["content"],
        ledger=ledger,
        evidence=evidence,
        generation=generation,
        thinking=thinking,
        tools=tools,
        settings={k: getattr(media_options, k) for k in MediaOptions.__slots__ if k in options},
        media=inputs.media,
    )
    return Session(assistant, opened, prompt.cache.snapshot())
