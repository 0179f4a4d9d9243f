"""A `Sample` -> `OmniInputs` with labels, by the product's own prompt, processor and gateway.

1. Open the media; put each where its tag or its part stands (`omni.prompt` writes the markers).
2. Render the chat template and build ids, placeholders and labels (`OmniProcessor`).
3. Take back the labels of turns that the row does not want learned.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jinja2
import torch
from torch import Tensor

from finetune.data.options import merge_options
from finetune.data.sample import MediaRef, Sample
from finetune.data.shown import mark_shown
from finetune.data.tags import TAG
from finetune.data.webdataset import TarMember
from omni import MediaOptions, OmniInputs, OmniProcessor
from omni.errors import RequestError
from omni.inputs import IGNORE_INDEX, MediaItem
from omni.prompt import MarkedMedium, MediaKind, Medium, flatten_messages, mark
from token_reduction import build

DEFAULTS = MediaOptions()


def encode_sample(
    sample: Sample,
    processor: OmniProcessor,
    *,
    options: MediaOptions = DEFAULTS,
    guided: bool = False,
) -> OmniInputs:
    """Build one training row.

    Args:
        sample: From a `Dataset`.
        processor: Of the model; its ``settings.max_model_len`` is the longest sample (see
            `with_max_length`), its roots and network switch hold for the media.
        options: Sampling and reduction where the sample has none of its own.
        guided: Also note what its pictures show, for `finetune.guide`.

    Returns:
        One row with labels: what the learned assistant turns say, end tokens included; -100
        elsewhere. Media are opened, but frames, pages and clips are decoded when they are encoded,
        or by `decode_media`.

    Raises:
        OmniError: A medium cannot be used, or the sample does not fit.
    """
    options = merge_options(options, sample.options)
    text, media = _render(sample, sample.messages, processor, options, answered=True)
    inputs = processor.from_text(text, media, options=options, with_labels=True)
    assert inputs.labels is not None
    labels = keep_turns(inputs.labels, sample.learned, processor.ids.turn_end)
    inputs = replace(inputs, labels=labels)
    if not guided:
        return inputs
    answer = str(sample.messages[-1]["content"])
    return mark_shown(inputs, sample.shown, answer, processor.tokenizer)


def encode_prompt(
    sample: Sample, processor: OmniProcessor, *, options: MediaOptions = DEFAULTS, room: int = 0
) -> tuple[OmniInputs, str]:
    """Build the prompt of a sample's last answer, to have it generated and compared.

    Args:
        sample: Its last turn must be the assistant's.
        processor: Of the model.
        options: As in `encode_sample`.
        room: Tokens to leave for the answer.

    Returns:
        A row that ends where the answer starts, and the answer's text.

    Raises:
        OmniError: As `encode_sample`; or the last turn is not the assistant's words.
    """
    *turns, last = sample.messages
    if last["role"] != "assistant" or not isinstance(last["content"], str) or not turns:
        raise RequestError(
            f"{sample.origin}: found a conversation that ends with {last['role']!r}; expected a "
            "question and the assistant's text, to compare an answer with"
        )
    options = merge_options(options, sample.options)
    text, media = _render(sample, turns, processor, options, answered=False)
    inputs = processor.from_text(text, media, options=options, answer_tokens=room)
    return inputs, last["content"]


def with_max_length(processor: OmniProcessor, max_length: int) -> OmniProcessor:
    """The same processor, for rows of at most so many tokens.

    Pictures share this room as they share a model's context; what does not fit raises
    ContextLengthError with the tokens of every medium.

    Args:
        processor: Left as it is.
        max_length: Tokens; the model's context stays the upper bound.
    """
    limited = copy.copy(processor)
    length = min(max_length, processor.settings.max_model_len)
    limited.settings = replace(processor.settings, max_model_len=length)
    return limited


def decode_media(inputs: OmniInputs, *, keep: bool = True) -> OmniInputs:
    """Decode every frame, page and clip now, so that damage shows before the model runs.

    Args:
        inputs: From `encode_sample`.
        keep: Hold what was decoded (4 bytes a value), ready for the model and for other processes;
            otherwise it is only looked at, and decoded again when the model reads it.

    Raises:
        MediaError: A medium is damaged behind its header.
    """
    decoded = []
    for item in inputs.media:
        if keep:
            decoded.append(_decoded(item))
        else:
            for _ in item.windows:
                pass
    return replace(inputs, media=decoded) if keep else inputs


def keep_turns(labels: Tensor, learned: tuple[bool, ...], turn_end: int) -> Tensor:
    """Ignore the labels of assistant turns that are not learned.

    Args:
        labels: ``(1, seq)``; each assistant turn's labels end with `turn_end`.
        learned: One entry an assistant turn.
        turn_end: Id of the token that ends a turn.

    Raises:
        RequestError: The labels have another number of turns.
    """
    is_end = labels[0] == turn_end
    if int(is_end.sum()) != len(learned):
        raise RequestError(
            f"found {int(is_end.sum())} labelled turn(s) for {len(learned)} assistant message(s): "
            "the chat template does not write each as <|im_start|>assistant ... <|im_end|>"
        )
    # A token belongs to the turn that as many ends stand before as there are earlier turns.
    turn = (is_end.cumsum(0) - is_end.long()).clamp(max=len(learned) - 1)
    kept = torch.tensor(learned)[turn]
    return labels.masked_fill(~kept[None], IGNORE_INDEX)


def _render(
    sample: Sample,
    turns: tuple[Mapping[str, Any], ...] | list[Mapping[str, Any]],
    processor: OmniProcessor,
    options: MediaOptions,
    *,
    answered: bool,
) -> tuple[str, list[MarkedMedium]]:
    """The chat template's text of some turns, and their media."""
    refs = iter(sample.media)
    flat: list[dict[str, Any]] = []
    media: list[MarkedMedium] = []
    for turn in turns:
        content = turn["content"]
        if isinstance(content, str):
            flat.append({**turn, "content": _expand_tags(content, refs, processor, options, media)})
            continue
        parts = [part if part["type"] == "text" else _filled(part, next(refs)) for part in content]
        [message], marked = flatten_messages(
            [{**turn, "content": parts}],
            partial(_load, processor),
            audio_in_video=options.audio_in_video,
        )
        flat.append(message)
        media += marked
    try:
        text = processor.render(
            flat,
            thinking=False,
            tools=sample.tools,
            add_generation_prompt=not answered,
            keep_history_thinking=True,
        )
    except (jinja2.TemplateError, TypeError) as error:
        raise RequestError(f"the chat template refuses the conversation: {error}") from error
    return text, media


def _expand_tags(
    content: str,
    refs: Iterator[MediaRef],
    processor: OmniProcessor,
    options: MediaOptions,
    media: list[MarkedMedium],
) -> str:
    """Markers for tags; everything around them stays as it is."""
    pieces, position = [], 0
    for match in TAG.finditer(content):
        ref = next(refs)
        medium = _load(processor, ref.source, kind=ref.kind)
        text, marked = mark(medium, audio_in_video=options.audio_in_video)
        pieces += [content[position : match.start()], text]
        media += marked
        position = match.end()
    return "".join([*pieces, content[position:]])


def _filled(part: Mapping[str, Any], ref: MediaRef) -> dict[str, Any]:
    return {**part, str(part["type"]): ref.source}


def _load(processor: OmniProcessor, source: Any, *, kind: MediaKind | None) -> Medium:
    """Open one medium through the gateway; of a tar shard, only the member's bytes."""
    if isinstance(source, TarMember):
        with source.open() as file:
            return processor.load_media(file, kind=kind)
    return processor.load_media(source, kind=kind)


def _decoded(item: MediaItem) -> MediaItem:
    """An item that holds its windows, and the cues that its reducer asks for."""
    cues: Callable[[], Mapping[str, Tensor]] | None = None
    if item.cues is not None and build(item.reduction).part("after_projector").cues:
        cues = partial(dict, item.cues())
    return replace(item, windows=list(item.windows), cues=cues, envelope=None)
