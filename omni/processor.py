"""Prompts and media to `OmniInputs`: every length is known here, before anything runs.

1. Turn messages into one string with media markers (`omni.prompt`).
2. Plan every medium: grid, frames, clips, and from these its token count (`omni.planning`); with a
   budget, again on lower and lower rungs until the request fits (`omni.budget`).
3. Tokenise the text between markers; put delimiters, labels and placeholders where markers were.

Text pieces are tokenised apart, which gives the ids of the whole string, since a special token
stands at every cut.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from omni.budget import BudgetReport
from omni.config import OmniConfig
from omni.errors import CheckpointError, ContextLengthError, RequestError
from omni.fitting import RequestCounter, fit_request
from omni.footprint import Runtime
from omni.inputs import IGNORE_INDEX, MediaItem, OmniInputs
from omni.media import Audio, Document, Image, MediaLimits, Video, load_media
from omni.options import MediaOptions
from omni.planned import PlannedMedium
from omni.planning import MediaPlanner
from omni.prompt import (
    MarkedMedium,
    Message,
    check_markers,
    cut_text,
    flatten_messages,
    marker_kind,
)
from omni.settings import ProcessorSettings

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")

# What an assistant turn consists of: its header and an empty or opened think block, which the
# prompt supplies, then what the model has to say, its end token included.
ASSISTANT_TURN = re.compile(
    r"<\|im_start\|>assistant\n(?:<think></think>)?(?P<said>.*?<\|im_end\|>)", re.DOTALL
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialIds:
    """Ids of the tokens that frame media and turns, looked up in the tokenizer."""

    image: int
    image_start: int
    image_end: int
    audio: int
    audio_start: int
    audio_end: int
    turn_end: int
    pad: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "SpecialIds":
        """Look up every token.

        Raises:
            CheckpointError: A token is missing from the vocabulary, or is not a single token.
        """
        names = {
            "image": "<image>",
            "image_start": "<img>",
            "image_end": "</img>",
            "audio": "<so_embedding>",
            "audio_start": "<so_start>",
            "audio_end": "<so_end>",
            "turn_end": "<|im_end|>",
        }
        ids = {field: single_id(tokenizer, token) for field, token in names.items()}
        pad = tokenizer.pad_token_id
        return cls(**ids, pad=0 if pad is None else pad)


def single_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of a special token.

    Raises:
        CheckpointError: The tokenizer does not have it as one token.
    """
    found = tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(found) != 1:
        raise CheckpointError(
            f"The tokenizer splits {token!r} into {len(found)} ids; expected one special token. "
            "Use the tokenizer that belongs to the checkpoint."
        )
    return int(found[0])


class OmniProcessor:
    """Tokenizer, chat template and media preprocessing of one checkpoint.

    Args:
        tokenizer: Its tokenizer; its chat template is used if it has one, else ours.
        config: The model's config: grids, patch sizes, reductions.
        settings: Sampling defaults.
        limits: What the media gateway accepts.
        allowed_roots: Folders that files may be read from; None allows any.
        allow_network: Whether URLs may be fetched.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: OmniConfig,
        settings: ProcessorSettings | None = None,
        *,
        limits: MediaLimits | None = None,
        allowed_roots: Sequence[Path] | None = None,
        allow_network: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.settings = settings or ProcessorSettings()
        self.limits = limits or MediaLimits()
        self.allowed_roots = allowed_roots
        self.allow_network = allow_network
        self.ids = SpecialIds.of(tokenizer)
        self.think_end = single_id(tokenizer, "</think>")
        for field in ("image", "audio"):
            expected = getattr(config, f"{field}_token_id")
            if expected is not None and expected != getattr(self.ids, field):
                raise CheckpointError(
                    f"config.{field}_token_id is {expected} but the tokenizer's id is "
                    f"{getattr(self.ids, field)}. Use the tokenizer that belongs to the checkpoint."
                )

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, config: OmniConfig, **options: Any
    ) -> "OmniProcessor":
        """Load tokenizer, template and settings of a checkpoint directory.

        Args:
            directory: Where ``tokenizer.json`` is.
            config: The model's config.
            options: ``limits``, ``allowed_roots``, ``allow_network`` as in the constructor.

        Raises:
            CheckpointError: No tokenizer there.
        """
        directory = Path(directory)
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"No usable tokenizer in {directory}: {str(error).splitlines()[0]} Expected "
                "tokenizer.json and tokenizer_config.json beside the weights."
            ) from error
        return cls(tokenizer, config, ProcessorSettings.load(directory), **options)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write tokenizer, chat template and settings."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(str(directory))
        self.settings.save(Path(directory))

    # ---------------------------------------------------------------- text

    def load_media(self, source: Any, **options: Any) -> Any:
        """Open one source through the media gateway, under this processor's limits.

        A medium that is open already, such as a video array with its frame rate from
        ``omni.media.load_media(array, fps=...)``, is taken as it is.
        """
        if isinstance(source, Image | Video | Audio | Document):
            return source
        return load_media(
            source,
            limits=self.limits,
            allowed_roots=self.allowed_roots,
            allow_network=self.allow_network,
            **options,
        )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        thinking: bool = True,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        keep_history_thinking: bool = False,
    ) -> str:
        """Apply the chat template to messages with string content.

        Args:
            messages: Turns; content is text with media markers.
            thinking: Open a think block for the answer; otherwise it is closed at once.
            add_generation_prompt: End with the header of the assistant's turn.
            tools: Function declarations, where the template takes them.
            keep_history_thinking: Keep the reasoning of earlier turns (training does).
        """
        if not messages:
            raise RequestError("Expected at least one message, found none.")
        template = None if self.tokenizer.chat_template else CHAT_TEMPLATE.read_text()
        text = self.tokenizer.apply_chat_template(
            list(messages),
            tools=list(tools) if tools else None,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=thinking,
            truncate_history_thinking=not keep_history_thinking,
        )
        return str(text)

    def tokenise(self, text: str) -> list[int]:
        """Ids of a piece of text; special tokens in it are recognised."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Lengths of pieces of text that are tokenised apart."""
        found = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [len(ids) for ids in found]

    # ---------------------------------------------------------------- requests

    def __call__(
        self,
        messages: Sequence[Message],
        *,
        options: MediaOptions | None = None,
        thinking: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        with_labels: bool = False,
        answer_tokens: int = 0,
        runtime: Runtime | None = None,
    ) -> OmniInputs:
        """Build one request, or with labels one training sample.

        Args:
            messages: Turns with text and media parts (OpenAI or Hugging Face style).
            options: Sampling, reduction and budget of this request.
            thinking: Let the model reason before it answers.
            tools: Function declarations.
            with_labels: The messages hold the answers; label what the assistant says.
            answer_tokens: Room to leave in the context, and in a budget, for the answer.
            runtime: How the model is loaded, for a memory budget; by default float32 on a CPU.

        Returns:
            One row. Pictures are opened here; frames, pages and clips only when encoded.

        Raises:
            OmniError: A medium cannot be used, markers do not match, or the request does not fit
                the context or its budget.
        """
        options = options or MediaOptions()
        flat, media = flatten_messages(
            messages, self.load_media, audio_in_video=options.audio_in_video
        )
        text = self.render(
            flat,
            thinking=thinking,
            tools=tools,
            add_generation_prompt=not with_labels,
            keep_history_thinking=with_labels,
        )
        return self.from_text(
            text,
            media,
            options=options,
            with_labels=with_labels,
            answer_tokens=answer_tokens,
            runtime=runtime,
        )

    def from_text(
        self,
        text: str,
        media: Sequence[MarkedMedium] = (),
        *,
        options: MediaOptions | None = None,
        with_labels: bool = False,
        answer_tokens: int = 0,
        runtime: Runtime | None = None,
    ) -> OmniInputs:
        """Build a request from a rendered prompt with markers; see `__call__`."""
        options = options or MediaOptions()
        matches = check_markers(text, media)
        text_tokens = len(self.tokenise(text))
        room = self.settings.max_model_len - answer_tokens
        planner = MediaPlanner(
            media, self.config, self.settings, options, max_tokens=room - text_tokens
        )
        spans = self._loss_spans(text) if with_labels else None
        planned, report = planner.plan(), None
        if options.has_budget:
            edges = [0, *(edge for match in matches for edge in match.span()), len(text)]
            gaps = [
                tuple(piece for piece, _ in cut_text(text, start, end, "", spans or []))
                for start, end in zip(edges[::2], edges[1::2], strict=True)
            ]
            counter = RequestCounter(
                self.config,
                gaps,
                self.count_tokens,
                answer_tokens=answer_tokens,
                runtime=runtime or Runtime(),
                training=with_labels,
            )
            planned, report = fit_request(
                planner, counter, context_tokens=self.settings.max_model_len
            )
        row = _Row(self, spans)
        position = 0
        for match, medium in zip(matches, planned, strict=True):
            row.add_text(text, position, match.start(), tail=medium.lead_in)
            row.add_medium(medium, marker_kind(match))
            position = match.end()
        row.add_text(text, position, len(text))
        inputs = row.finish(report)
        if inputs.num_tokens > room:
            raise ContextLengthError(self._too_long(inputs, answer_tokens))
        return inputs

    def _loss_spans(self, text: str) -> list[tuple[int, int]]:
        """Character spans of what the assistant says; the think header is the prompt's."""
        spans = []
        for match in ASSISTANT_TURN.finditer(text):
            start = match.start("said")
            if match["said"].startswith("<think>\n"):
                start += len("<think>\n")
            spans.append((start, match.end("said")))
        if not spans:
            raise RequestError(
                "A training sample needs at least one assistant message; found none."
            )
        return spans

    def _too_long(self, inputs: OmniInputs, answer_tokens: int) -> str:
        parts = ", ".join(f"{item.name} {item.block_length}" for item in inputs.media[:5])
        more = f" and {len(inputs.media) - 5} more" if len(inputs.media) > 5 else ""
        free = self.settings.max_model_len - inputs.num_tokens
        shorter = f"Lower max_new_tokens to {free} or less, or send" if free > 0 else "Send"
        return (
            f"The request has {inputs.num_tokens} tokens and leaves room for {answer_tokens} of an "
            f"answer, but the context holds {self.settings.max_model_len} (media: "
            f"{parts or 'none'}{more}). {shorter} fewer or shorter media, lower fps or num_frames, "
            "raise the reduction rate, or set max_tokens (--max-tokens) to "
            f"{self.settings.max_model_len}, by which they are lowered until the request fits."
        )


class _Row:
    """Collects the ids, labels and media of one row from left to right."""

    def __init__(self, processor: OmniProcessor, spans: list[tuple[int, int]] | None) -> None:
        self.processor = processor
        self.spans = spans
        self.input_ids: list[int] = []
        self.labels: list[int] = []
        self.media: list[MediaItem] = []

    def add_text(self, text: str, start: int, end: int, tail: str = "") -> None:
        """Tokenise ``text[start:end]``, cut where the loss begins or ends, then ``tail``."""
        for piece, said in cut_text(text, start, end, tail, self.spans or []):
            ids = self.processor.tokenise(piece) if piece else []
            self._add(ids, ids if said else [IGNORE_INDEX] * len(ids))

    def add_medium(self, medium: PlannedMedium, kind: str) -> None:
        """Delimiters and placeholders of one medium; a tiled image is several items in a row."""
        ids = self.processor.ids
        is_audio = kind == "audio"
        start_id, end_id = (
            (ids.audio_start, ids.audio_end) if is_audio else (ids.image_start, ids.image_end)
        )
        self._add_ignored([start_id])
        for item in medium.items:
            separators = tuple(
                (ids.image_end, *self.processor.tokenise(label), ids.image_start)
                for label in medium.step_labels
            )
            item = replace(
                item,
                token_id=ids.audio if is_audio else ids.image,
                start=len(self.input_ids),
                separators=separators,
            )
            # Until the counts of each step are known, all placeholders stand in the first step.
            planned, _ = item.lay([item.num_tokens, *[0] * len(separators)])
            self._add_ignored(planned)
            self.media.append(item)
        self._add_ignored([end_id])

    def finish(self, report: BudgetReport | None) -> OmniInputs:
        """The row as tensors."""
        input_ids = torch.tensor([self.input_ids], dtype=torch.long)
        return OmniInputs(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids, dtype=torch.bool),
            labels=None if self.spans is None else torch.tensor([self.labels]),
            media=self.media,
            budget=report,
        )

    def _add(self, ids: list[int], labels: list[int]) -> None:
        self.input_ids += ids
        self.labels += labels

    def _add_ignored(self, ids: list[int]) -> None:
        self._add(ids, [IGNORE_INDEX] * len(ids))
