"""Batched, cached, streamed decoding with a reasoning budget.

1. Prefill: embed the prompt with its media and run it through the decoder in chunks.
2. Choose a token per row (`omni.choosing`).
3. Step the rows that go on; rows that have ended leave the batch and the cache.

Rows never influence each other, so an answer does not depend on the batch it was made in.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from omni.backbone.cache import HybridCache
from omni.choosing import Chooser, GenerationOptions, Vocabulary
from omni.encoding import StageTimes
from omni.errors import RequestError
from omni.inputs import OmniInputs
from omni.memory import PREFILL_CHUNK, release_heap
from omni.stopping import check_stop
from token_reduction import TokenLayout

CHUNKS_PER_RELEASE = 4  # chunks after which freed memory goes back to the system: milliseconds


@dataclass(slots=True, kw_only=True)
class Prefilled:
    """A prompt that the decoder has read.

    Attributes:
        logits: Scores of the next token, ``(batch, vocab)``.
        cache: The decoder's state.
        attention_mask: ``(batch, seq)``, True where a position is real.
        layouts: What reduction kept of each medium.
        ended: Rows that ended their answer by themselves, before ``max_new_tokens`` did.
    """

    logits: Float[Tensor, "batch vocab"]
    cache: Any
    attention_mask: Tensor
    layouts: list[TokenLayout] = field(default_factory=list)
    ended: set[int] = field(default_factory=set)


@torch.no_grad()
def prefill(
    model: Any,
    inputs: OmniInputs,
    *,
    times: StageTimes | None = None,
    chunk: int = PREFILL_CHUNK,
    answer_tokens: int = 0,
) -> Prefilled:
    """Read a batch of prompts, padded on the left.

    Args:
        model: An ``OmniModel``.
        inputs: The prompts; every row must end with a real token.
        times: Filled with the seconds of each medium's stages.
        chunk: Positions run at a time; the result does not depend on it.
        answer_tokens: Room to make in the cache for an answer. A longer one makes the cache grow,
            which copies it.

    Returns:
        Scores of the first new token, and the cache.

    Raises:
        RequestError: A row ends with padding.
    """
    inputs = inputs.to(model.device)
    if not bool(inputs.attention_mask[:, -1].all()):
        raise RequestError("Prompts for generation must be padded on the left; found padding last.")
    embeddings, _, layouts = model.embed(
        inputs.input_ids, inputs.media, inputs.attention_mask, times
    )
    mask = None if bool(inputs.attention_mask.all()) else inputs.attention_mask
    cache = model.new_cache(embeddings.shape[1] + answer_tokens)
    # Each piece is freed once it is read: what it leaves behind in the cache takes its place.
    pieces = deque(piece.clone() for piece in embeddings.split(chunk, dim=1))
    del embeddings
    logits, cache = _read(model, pieces, mask, cache)
    return Prefilled(
        logits=logits, cache=cache, attention_mask=inputs.attention_mask, layouts=layouts
    )


@torch.no_grad()
def continue_prompt(
    model: Any,
    cache: HybridCache,
    input_ids: Int[Tensor, "batch seq"],
    attention_mask: Bool[Tensor, "batch past_and_seq"] | None = None,
    *,
    chunk: int = PREFILL_CHUNK,
) -> Prefilled:
    """Read more text of prompts, of which a cache holds the beginnings.

    Args:
        model: The ``OmniModel`` that read the beginnings.
        cache: Moves on with what is read.
        input_ids: The ids that follow, without media, padded on the left.
        attention_mask: Which positions are real, those in the cache included; None: all.
        chunk: Positions run at a time; the result does not depend on it.

    Returns:
        Scores of the first new token, and the cache.
    """
    embeddings = model.get_input_embeddings()(input_ids.to(model.device))
    past = cache.get_seq_length()
    mask = attention_mask
    if mask is None:
        mask = torch.ones(len(input_ids), past + input_ids.shape[1], dtype=torch.bool)
    padded = None if bool(mask.all()) else mask
    logits, _ = _read(model, deque(embeddings.split(chunk, dim=1)), padded, cache, past)
    return Prefilled(logits=logits, cache=cache, attention_mask=mask.to(logits.device))


@torch.no_grad()
def score_answer(
    model: Any,
    embeddings: Float[Tensor, "1 seq hidden"],
    answer_ids: Int[Tensor, " answer"],
    *,
    chunk: int = PREFILL_CHUNK,
) -> Float[Tensor, " answer"]:
    """Log-probabilities of an answer's tokens behind a prompt, each given those before it.

    Args:
        model: An ``OmniModel``.
        embeddings: Of the prompt, media in place.
        answer_ids: At least one.
        chunk: Positions run at a time; the result does not depend on it.
    """
    ids = answer_ids.to(embeddings.device)
    cache = model.new_cache(embeddings.shape[1] + len(ids))
    pieces = deque(piece.clone() for piece in embeddings.split(chunk, dim=1))
    first, cache = _read(model, pieces, None, cache)
    scores = [first[:, None]]
    if len(ids) > 1:
        spoken = model.get_input_embeddings()(ids[None, :-1])
        scores.append(model(inputs_embeds=spoken, cache=cache, use_cache=True).logits)
    log_p = torch.cat(scores, dim=1)[0].float().log_softmax(-1)
    return log_p.gather(1, ids[:, None])[:, 0]


def _read(
    model: Any, pieces: deque[Tensor], mask: Tensor | None, cache: Any, read: int = 0
) -> tuple[Float[Tensor, "batch vocab"], Any]:
    """Run embeddings piece by piece behind the `read` positions that the cache has.

    Each piece is freed once it is read.

    Returns:
        The scores after the last, and the cache.
    """
    logits = pieces[0].new_empty(0, 0)
    while pieces:
        check_stop()
        if len(pieces) % CHUNKS_PER_RELEASE == 0:
            release_heap()
        piece = pieces.popleft()
        read += piece.shape[1]
        out = model(
            inputs_embeds=piece,
            attention_mask=None if mask is None else mask[:, :read],
            cache=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache, logits = out.cache, out.logits[:, -1]
    return logits, cache


def generate(
    model: Any,
    prompt: Prefilled,
    options: GenerationOptions,
    vocabulary: Vocabulary,
    *,
    thinking: bool = False,
    schemas: Sequence[Any] | None = None,
) -> Iterator[list[tuple[int, int]]]:
    """Continue prompts token by token.

    Args:
        model: The model that prefilled them.
        prompt: Consumed: its cache moves on with the answer, and it notes which rows have ended.
        options: How to choose and when to stop.
        vocabulary: Ids that steer.
        thinking: Whether answers begin with reasoning, to which a schema does not apply.
        schemas: One for each row, and perhaps more, in place of that of the options.

    Yields:
        The new ``(row, token)`` pairs of each step, for the rows still going. A stop token ends
        its row and is not yielded.
    """
    rows = list(range(len(prompt.logits)))
    own = [options if schemas is None else replace(options, schema=schemas[row]) for row in rows]
    choosers = [Chooser(own[row], vocabulary, row, thinking) for row in rows]
    logits, mask = prompt.logits, prompt.attention_mask
    is_padded = not bool(mask.all())
    for step in range(options.max_new_tokens):
        check_stop()
        chosen = [choosers[row](scores) for row, scores in zip(rows, logits, strict=True)]
        going = [i for i, token in enumerate(chosen) if token not in vocabulary.stop]
        prompt.ended.update(row for row in rows if choosers[row].has_ended)
        rows, chosen = [rows[i] for i in going], [chosen[i] for i in going]
        if not rows:
            return
        yield list(zip(rows, chosen, strict=True))
        if step + 1 == options.max_new_tokens:
            return
        if len(going) < len(logits):
            mask = mask[torch.tensor(going, device=mask.device)]
            _select(prompt.cache, going)
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        with torch.no_grad():  # not around the loop: the caller runs between two steps
            out = model(
                input_ids=torch.tensor(chosen, device=logits.device)[:, None],
                attention_mask=mask if is_padded else None,
                cache=prompt.cache,
                use_cache=True,
            )
        prompt.cache, logits = out.cache, out.logits[:, -1]


def _select(cache: Any, rows: Sequence[int]) -> None:
    """Keep the rows that go on, in our cache or in one of transformers'."""
    if hasattr(cache, "select"):
        cache.select(list(rows))
    else:
        cache.batch_select_indices(torch.tensor(rows))


def collect(steps: Iterator[list[tuple[int, int]]], num_rows: int) -> list[list[int]]:
    """Run a generation to its end.

    Args:
        steps: From `generate`.
        num_rows: Rows of the batch.

    Returns:
        The tokens of each row, stop tokens left out.
    """
    answers: list[list[int]] = [[] for _ in range(num_rows)]
    for step in steps:
        for row, token in step:
            answers[row].append(token)
    return answers
