"""The toolkit's front door: load a checkpoint, ask about files, stream, chat, plan."""

import time
from collections.abc import Mapping, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch

from omni.adapters import load_adapter, read_adapter
from omni.answer_stream import AnswerStream, make_request_ledger
from omni.backbone.native.library import start_building
from omni.budget import parse_bytes
from omni.checkpoint import EMBEDDED_MODELS, resolve_checkpoint
from omni.choosing import GenerationOptions, Vocabulary
from omni.footprint import Runtime
from omni.generation import generate
from omni.grammar import Grammars
from omni.inputs import OmniInputs
from omni.ledger import Ledger
from omni.model import OmniModel
from omni.options import MediaOptions, take
from omni.processor import OmniProcessor
from omni.prompt import Message
from omni.reply import Reply
from omni.session import Session, open_session
from omni.shared_prompts import prefill_lots
from omni.text_reader import TextReader

EMBEDDED_MODEL = "omni-tiny"
EMBEDDED_PATH = EMBEDDED_MODELS / EMBEDDED_MODEL


class Assistant:
    """A model with its processor, ready to answer.

    Args:
        model: The model, in eval mode.
        processor: The processor of the same checkpoint.
        name: What to call the model.
    """

    def __init__(self, model: OmniModel, processor: OmniProcessor, *, name: str) -> None:
        self.model = model
        self.processor = processor
        self.name = name
        self.vocabulary = build_vocabulary(model, processor)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        device_map: str | Mapping[str, Any] | None = None,
        revision: str | None = None,
        adapter: str | Path | None = None,
        compile_step: bool | None = None,
        **processor_options: Any,
    ) -> "Assistant":
        """Load a checkpoint; see `omni.load`."""
        if adapter is not None and path_or_id is None:
            path_or_id = read_adapter(adapter)["base"]
        directory = (
            EMBEDDED_PATH
            if path_or_id is None or path_or_id == EMBEDDED_MODEL  # no Path: that is a folder
            else resolve_checkpoint(path_or_id, revision=revision)
        )
        if compile_step is not False and str(device or "cpu") == "cpu":
            start_building()  # beside the loading, so that the first answer need not wait
        model = OmniModel.from_pretrained(
            directory, device=device, dtype=dtype, device_map=device_map
        )
        processor = OmniProcessor.from_pretrained(directory, model.config, **processor_options)
        name = Path(path_or_id or EMBEDDED_MODEL).name
        if adapter is not None:
            load_adapter(model, adapter)
            name = f"{name} + {Path(adapter).name}"
        if compile_step is not None:
            model.compile_step(is_wanted=compile_step)
        return cls(model, processor, name=name)

    # ---------------------------------------------------------------- one question

    def ask(self, question: str, *media: Any, **options: Any) -> Reply:
        """Answer a question about any number of media.

        Args:
            question: Plain text.
            media: Paths, bytes, file objects, PIL images, arrays, tensors, in prompt order.
            options: As in `chat`.

        Returns:
            The answer with ledger and evidence.

        Raises:
            OmniError: A medium cannot be used, or the request does not fit.
        """
        return self.chat(_as_messages(question, media), **options)

    def stream(self, question: str, *media: Any, **options: Any) -> AnswerStream:
        """Like `ask`, but yields the answer piece by piece; the pieces join to ``ask``'s text."""
        return self.stream_chat(_as_messages(question, media), **options)

    def plan(
        self,
        question: str,
        *media: Any,
        max_tokens: int | None = None,
        max_memory: int | str | None = None,
        max_new_tokens: int = 256,
        **options: Any,
    ) -> Ledger:
        """Count what a request would cost, without running the model.

        Args:
            question: Plain text.
            media: As in `ask`.
            max_tokens: Budget for prompt and answer together; see `chat`.
            max_memory: Budget for working memory; see `chat`.
            max_new_tokens: Room for the answer.
            options: Media options and ``thinking``, as in `chat`.

        Returns:
            The ledger without times; its media say what was chosen, and what was asked if it
            was lowered.

        Raises:
            ContextLengthError: The request does not fit; the message has the numbers.
        """
        options |= {"max_tokens": max_tokens, "max_memory": max_memory}
        options["max_new_tokens"] = max_new_tokens
        inputs, generation = self._prepare(_as_messages(question, media), options)
        return make_request_ledger(self, inputs, generation.max_new_tokens)

    # ---------------------------------------------------------------- sessions

    def open(
        self,
        *media: Any,
        system: str | None = None,
        earlier: Sequence[Message] = (),
        **options: Any,
    ) -> Session:
        """Encode and read media once, to ask about them many times; see `omni.session`.

        Args:
            media: As in `ask`; at least one.
            system: A system prompt.
            earlier: Turns of a conversation before the media, with media of their own or without.
            options: As in `chat`. Those of the answers are defaults for each question. A budget is
                met with ``question_tokens`` (128 unless given) left for a question.

        Returns:
            A session, with the ledger of what it has read.

        Raises:
            OmniError: As `ask`, or the model's decoder is not ours.
        """
        return open_session(self, media, system=system, earlier=earlier, **options)

    def load_session(self, path: str | Path) -> Session:
        """Continue a session that `Session.save` wrote with the same model.

        Raises:
            SessionError: The file is damaged or of another version, model or settings.
        """
        return Session.load(path, self)

    # ---------------------------------------------------------------- conversations

    def chat(self, messages: Sequence[Message], **options: Any) -> Reply:
        """Answer the last turn of a conversation.

        With ``max_tokens`` (prompt and answer) or ``max_memory`` (bytes, or ``"8GB"``, of working
        memory without the weights), rates, frames and resolution of all media are lowered together
        until the request fits; `omni.budget` has the policy. The ledger says what was chosen.

        Args:
            messages: OpenAI or Hugging Face style turns with text and media parts.
            options: ``MediaOptions`` (``reduction``, ``fps``, ``num_frames``, ``dpi``,
                ``image_tokens``, ``audio_in_video``, ``max_tokens``, ``max_memory``),
                ``GenerationOptions`` (``max_new_tokens``, ``temperature``, ``top_p``, ``top_k``,
                ``seed``, ``reasoning_budget``, ``reasoning_grace``, ``schema``), and ``thinking``,
                ``tools``. With ``schema`` (a JSON Schema as a dict or a file, a pydantic model
                class) the answer is JSON that is valid for it, and ``parsed`` has its values; the
                prompt does not mention it.

        Returns:
            The answer with ledger and evidence.

        Raises:
            OmniError: A medium cannot be used, an option is unknown, the request does not fit.
        """
        answer = self.stream_chat(messages, **options)
        for _ in answer:
            pass
        return answer.reply()

    def stream_chat(self, messages: Sequence[Message], **options: Any) -> AnswerStream:
        """Like `chat`, but yields the answer's text piece by piece.

        The request is checked when this is called; the model runs as pieces are taken.
        """
        start = time.perf_counter()
        inputs, generation = self._prepare(messages, options)
        return AnswerStream(
            self, messages, options, inputs=inputs, generation=generation, start=start
        )

    def chat_batch(self, conversations: Sequence[Sequence[Message]], **options: Any) -> list[str]:
        """Answer several conversations in one batch; each as it would be alone.

        Args:
            conversations: One list of turns each.
            options: As in `chat`; with sampling, row r uses ``seed + r``. ``max_tokens`` holds for
                each conversation, ``max_memory`` for all together, in equal shares.

        Returns:
            The answers' texts, in order.
        """
        if not conversations:
            return []
        if options.get("max_memory") is not None:
            share = parse_bytes(options["max_memory"]) // len(conversations)
            options = {**options, "max_memory": share}
        prepared = [self._prepare(messages, options) for messages in conversations]
        return self._answers(
            [inputs for inputs, _ in prepared], prepared[0][1], bool(options.get("thinking"))
        )

    def answer_batch(self, prompts: Sequence[OmniInputs], **options: Any) -> list[str]:
        """Answer prompts that the processor has built; each as it would be alone.

        Args:
            prompts: One row each, ending where the answer starts.
            options: ``GenerationOptions``.

        Returns:
            The answers' texts, in order.
        """
        return self._answers(prompts, GenerationOptions(**options), thinking=False)

    def prepare(self, messages: Sequence[Message], **options: Any) -> OmniInputs:
        """Build the prompt of a conversation, for `reply_batch`; options as in `chat`."""
        return self._prepare(messages, options)[0]

    def reply_batch(self, prompts: Sequence[OmniInputs], **options: Any) -> list[Reply]:
        """Answer prepared prompts in one batch; each as it would be alone.

        Args:
            prompts: From `prepare`, with the same options.
            options: As in `chat`.

        Returns:
            Replies without evidence, in order. The seconds of their ledgers are the batch's.
        """
        return self.reply_lots([[prompt] for prompt in prompts], **options)

    def reply_lots(
        self,
        lots: Sequence[Sequence[OmniInputs]],
        *,
        rows: int = 0,
        schemas: Sequence[Any] | None = None,
        **options: Any,
    ) -> list[Reply]:
        """Answer several questions about each of several lots of media, which are read once.

        Args:
            lots: Prompts from `prepare`, with the same options. Those of a lot are about the same
                opened media, and each pair satisfies `omni.shared_prompts.shares_media`.
            rows: Answers made at a time; 0 is all. With sampling the r-th of them uses
                ``seed + r``.
            schemas: One for each prompt, in place of the options' one; None for free text.
            options: As in `chat`.

        Returns:
            Replies as those of `reply_batch`, lot by lot.
        """
        _, generation = self.read_options(options)
        if not self.model.is_hybrid:  # whose cache's rows cannot go on from one reading
            lots = [[prompt] for lot in lots for prompt in lot]
        begin = time.perf_counter()
        marks: dict[str, float] = {}
        thinking = bool(options.get("thinking"))
        readers = self._read_answers(lots, generation, thinking, marks, rows, schemas)
        marks["total"] = time.perf_counter() - begin
        replies = []
        own = repeat(generation.schema, len(readers)) if schemas is None else schemas
        prompts = chain.from_iterable(lots)
        for inputs, reader, schema in zip(prompts, readers, own, strict=True):
            ledger = make_request_ledger(self, inputs, reader.num_tokens)
            ledger.seconds = {name: round(seconds, 4) for name, seconds in marks.items()}
            replies.append(
                Reply(
                    text=reader.text,
                    reasoning=reader.reasoning,
                    finish_reason=reader.finish_reason,
                    parsed=reader.parse(schema),
                    ledger=ledger,
                )
            )
        return replies

    def _answers(
        self, prompts: Sequence[OmniInputs], generation: GenerationOptions, thinking: bool
    ) -> list[str]:
        readers = self._read_answers([[prompt] for prompt in prompts], generation, thinking, {})
        return [reader.text for reader in readers]

    def _read_answers(
        self,
        lots: Sequence[Sequence[OmniInputs]],
        generation: GenerationOptions,
        thinking: bool,
        marks: dict[str, float],
        rows: int = 0,
        schemas: Sequence[Any] | None = None,
    ) -> list[TextReader]:
        readers: list[TextReader] = []
        begin = time.perf_counter()
        marks["prefill"] = 0.0
        for part in prefill_lots(
            self.model,
            lots,
            pad_token_id=self.processor.ids.pad,
            answer_tokens=generation.max_new_tokens,
            rows=rows,
        ):
            marks["prefill"] += time.perf_counter() - begin
            own = [TextReader(self.processor, thinking) for _ in part.logits]
            steps = generate(
                self.model,
                part,
                generation,
                self.vocabulary,
                thinking=thinking,
                schemas=None if schemas is None else schemas[len(readers) :],
            )
            for step in steps:
                for row, token in step:
                    own[row].add(token)
            readers += [reader.finish(row in part.ended) for row, reader in enumerate(own)]
            begin = time.perf_counter()
        return readers

    # ---------------------------------------------------------------- parts

    def read_options(self, options: Mapping[str, Any]) -> tuple[MediaOptions, GenerationOptions]:
        """Sort the options of `chat` to where they belong.

        Raises:
            RequestError: A value is out of bounds, or nothing can be answered by the schema.
            TypeError: A name is unknown.
        """
        rest = {k: v for k, v in options.items() if k not in ("thinking", "tools")}
        media_options = take(MediaOptions, rest)
        generation = take(GenerationOptions, rest)
        if rest:
            known = sorted({*MediaOptions.__slots__, *GenerationOptions.__slots__})
            raise TypeError(
                f"Unknown option(s) {', '.join(map(repr, rest))}; expected thinking, tools or one "
                f"of {', '.join(known)}."
            )
        self.vocabulary.check_schema(generation, bool(options.get("thinking")))
        return media_options, generation

    def _prepare(
        self, messages: Sequence[Message], options: Mapping[str, Any]
    ) -> tuple[OmniInputs, GenerationOptions]:
        """Build the request."""
        media_options, generation = self.read_options(options)
        inputs = self.processor(
            messages,
            options=media_options,
            thinking=bool(options.get("thinking")),
            tools=options.get("tools"),
            answer_tokens=generation.max_new_tokens,
            runtime=Runtime.of(self.model),
        )
        return inputs, generation


def build_vocabulary(model: OmniModel, processor: OmniProcessor) -> Vocabulary:
    """Ids that end, steer and are forbidden in generation."""
    ids, tokenizer = processor.ids, processor.tokenizer
    stop = {ids.turn_end}
    eos = model.config.text_config.eos_token_id
    stop.update(eos if isinstance(eos, list) else [] if eos is None else [eos])
    breaks = frozenset(
        token for token in tokenizer.get_vocab().values() if "\n" in tokenizer.decode([token])
    )
    close = processor.tokenise("</think>\n\n")
    return Vocabulary(
        stop=frozenset(stop),
        banned=(
            ids.image,
            ids.image_start,
            ids.image_end,
            ids.audio,
            ids.audio_start,
            ids.audio_end,
        ),
        think_end=processor.think_end,
        line_break=breaks,
        close_at_break=tuple(close),
        close_anywhere=(*processor.tokenise(".\n"), *close),
        grammars=Grammars(tokenizer, stop),
    )


def _as_messages(question: str, media: Sequence[Any]) -> list[Message]:
    """One user turn: media first, then the question."""
    parts: list[dict[str, Any]] = [{"type": "media", "media": source} for source in media]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
