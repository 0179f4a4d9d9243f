"""Batched, cached, streamed decoding with a reasoning budget.

1. Prefill: embed the prompt with its media and run it through the decoder in chunks.
2. Choose a token per row: forbid media ids, then take the best or sample.
3. Step the rows that go on; rows that have ended leave the batch and the cache.

With a schema, step 2 allows what the schema allows, once reasoning has ended (`omni.grammar`).
Rows never influence each other, so an answer does not depend on the batch it was made in.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from omni.backbone.cache import HybridCache
from omni.encoding import StageTimes
from omni.errors import RequestError, SchemaError
from omni.grammar import Answer, Grammars
from omni.inputs import OmniInputs
from omni.memory import PREFILL_CHUNK, release_heap
from omni.schema import read_schema
from omni.stopping import check_stop
from token_reduction import TokenLayout

CHUNKS_PER_RELEASE = 4  # chunks after which freed memory goes back to the system: milliseconds
LEAST_TEMPERATURE = 1e-30  # what is below is nothing in float32


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """How to choose tokens and when to stop.

    Attributes:
        max_new_tokens: Most tokens of an answer, reasoning included.
        temperature: 0 takes the best token; higher is more varied.
        top_p: Sample from the smallest set of tokens with this much probability.
        top_k: Sample from this many best tokens; 0 is all.
        seed: Row r of a batch samples with ``seed + r``.
        reasoning_budget: Tokens after which reasoning ends at the next line break; None: no bound.
        reasoning_grace: Tokens after the budget at which reasoning is ended wherever it stands.
        schema: JSON Schema that the answer keeps to, as `omni.schema.read_schema` takes it; kept
            as a dict. The answer is complete even when it reaches ``max_new_tokens``.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    reasoning_budget: int | None = None
    reasoning_grace: int = 1024
    schema: Any = None

    def __post_init__(self) -> None:
        if self.schema is not None:
            object.__setattr__(self, "schema", read_schema(self.schema))
        for name in ("max_new_tokens", "top_k", "seed", "reasoning_budget", "reasoning_grace"):
            value = getattr(self, name)
            is_unset = value is None and name == "reasoning_budget"
            if not isinstance(value, Integral) and not is_unset:
                raise RequestError(f"{name} is {value!r}; expected a whole number.")
        for name in ("temperature", "top_p"):
            if not isinstance(value := getattr(self, name), Real):
                raise RequestError(f"{name} is {value!r}; expected a number.")
        bounds = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (0 <= self.temperature < math.inf, "0 or more, and finite"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "0 or more"),
            "seed": (abs(self.seed) < 2**62, "a number of less than 62 bits"),
            "reasoning_budget": ((self.reasoning_budget or 0) >= 0, "0 or more"),
            "reasoning_grace": (self.reasoning_grace >= 0, "0 or more"),
        }
        for name, (holds, expected) in bounds.items():
            if not holds:
                raise RequestError(f"{name} is {getattr(self, name)}; expected {expected}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The ids that steer generation.

    Attributes:
        stop: Any of them ends an answer.
        banned: Never emitted: media placeholders and delimiters.
        think_end: ``</think>``.
        line_break: Ids of tokens that contain a line break.
        close_at_break: Forced when reasoning ends at a line break.
        close_anywhere: Forced when reasoning ends in mid-line.
        grammars: Of the tokenizer, for answers by a schema.
    """

    stop: frozenset[int]
    banned: tuple[int, ...] = ()
    think_end: int | None = None
    line_break: frozenset[int] = frozenset()
    close_at_break: tuple[int, ...] = ()
    close_anywhere: tuple[int, ...] = ()
    grammars: Grammars | None = None

    def check_schema(self, options: GenerationOptions, thinking: bool) -> None:
        """Refuse a schema to which no answer can be given.

        Raises:
            SchemaError: It is wrong or unsupported, or its shortest answer does not fit.
        """
        if options.schema is None:
            return
        assert self.grammars is not None
        shortest = len(self.grammars.compile(options.schema).shortest)
        least = shortest + (len(self.close_anywhere) if thinking else 0)
        if options.max_new_tokens < least:
            what = "a short answer to the schema" + (" after reasoning" if thinking else "")
            raise SchemaError(
                f"max_new_tokens is {options.max_new_tokens}, but {what} takes {least} tokens; "
                "raise it, or ask for less."
            )


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
    choosers = [_Chooser(own[row], vocabulary, row, thinking) for row in rows]
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


class _Chooser:
    """Chooses one row's tokens; keeps its random state, reasoning budget and grammar."""

    def __init__(
        self, options: GenerationOptions, vocabulary: Vocabulary, row: int, thinking: bool
    ) -> None:
        self.options = options
        self.vocabulary = vocabulary
        self.random = torch.Generator().manual_seed(options.seed + row)
        self.forced: deque[int] = deque()
        self.reasoned = 0
        # No end of reasoning may be forced into an answer.
        self.is_reasoning = thinking and options.reasoning_budget is not None
        self.is_thinking = thinking
        self.left = options.max_new_tokens
        self.has_ended = False
        self.answer: Answer | None = None
        if options.schema is not None:
            vocabulary.check_schema(options, thinking)
            assert vocabulary.grammars is not None
            self.answer = vocabulary.grammars.compile(options.schema).start()

    def __call__(self, logits: Float[Tensor, " vocab"]) -> int:
        """Return the next token."""
        if self.answer is not None and self.is_thinking and not self.forced:
            self._leave_room(self.answer)
        token = self.forced.popleft() if self.forced else self._pick(logits)
        if token == self.vocabulary.think_end:
            self.is_thinking = False
        if self.is_reasoning and not self.forced:
            self._watch_budget(token)
        self.left -= 1
        self.has_ended = token in self.vocabulary.stop
        if self.answer is not None:
            is_over = self.has_ended or self.answer.is_closed
            self.has_ended = is_over and not self.answer.was_steered
        return token

    def _pick(self, logits: Tensor) -> int:
        scores = logits.float()
        if self.vocabulary.banned:
            banned = torch.tensor(self.vocabulary.banned, device=scores.device)
            scores = scores.index_fill(0, banned, -torch.inf)
        if self.answer is None:
            return self._best(scores)
        if self.is_thinking:  # no answer yet, so it cannot end
            stop = torch.tensor(sorted(self.vocabulary.stop), device=scores.device)
            return self._best(scores.index_fill(0, stop, -torch.inf))
        allowed = self.answer.allowed(len(scores)).to(scores.device)
        return self.answer.take(self._best(scores.where(allowed, -torch.inf)), self.left)

    def _best(self, scores: Tensor) -> int:
        if self.options.temperature == 0:
            return int(scores.argmax())
        scores = scores.cpu() - scores.max().cpu()  # a small temperature must not overflow
        weights = keep_likely(
            scores / max(self.options.temperature, LEAST_TEMPERATURE), self.options
        )
        return int(torch.multinomial(weights, 1, generator=self.random))

    def _leave_room(self, answer: Answer) -> None:
        """End reasoning while the shortest answer still fits."""
        if self.left <= len(self.vocabulary.close_anywhere) + len(answer.plan):
            self.forced.extend(self.vocabulary.close_anywhere)
            self.is_reasoning = False

    def _watch_budget(self, token: int) -> None:
        """End reasoning at a line break after the budget, or by force after the grace."""
        vocabulary, budget = self.vocabulary, self.options.reasoning_budget or 0
        self.reasoned += 1
        if token == vocabulary.think_end:
            self.is_reasoning = False
        elif self.reasoned >= budget and token in vocabulary.line_break:
            self.forced.extend(vocabulary.close_at_break)
            self.is_reasoning = False
        elif self.reasoned >= budget + self.options.reasoning_grace:
            self.forced.extend(vocabulary.close_anywhere)
            self.is_reasoning = False


def keep_likely(
    scores: Float[Tensor, " vocab"], options: GenerationOptions
) -> Float[Tensor, " vocab"]:
    """Probabilities after top-k and top-p; tokens outside get zero.

    Args:
        scores: Logits divided by the temperature.
        options: ``top_k`` and ``top_p``.

    Returns:
        Weights for sampling; they need not sum to one.
    """
    weights = scores.softmax(-1)
    if options.top_k:
        least = weights.topk(min(options.top_k, len(weights))).values[-1]
        weights = weights.where(weights >= least, 0.0)
    if options.top_p < 1:
        ordered, order = weights.sort(descending=True, stable=True)
        before = ordered.cumsum(0) - ordered
        dropped = order[before > options.top_p * weights.sum()]
        weights = weights.index_fill(0, dropped, 0.0)
    return weights


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
