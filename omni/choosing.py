"""How the next token is chosen: options, ids that steer, and the state of one row.

Media ids are forbidden, then the best token is taken, or one is sampled; with a schema only what
the schema allows, once reasoning has ended (`omni.grammar`).
"""

import math
from collections import deque
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from omni.errors import RequestError, SchemaError
from omni.grammar import Answer, Grammars
from omni.options import use_python_numbers
from omni.schema import read_schema

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
        use_python_numbers(self)


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


class Chooser:
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
        temperature = max(self.options.temperature, LEAST_TEMPERATURE)
        scores = scores.cpu() - scores.max().cpu()  # a small temperature must not overflow
        weights = keep_likely(scores / temperature, self.options)
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
