"""Answers that keep to a JSON Schema: which tokens may come next, and how to end in time.

The tokens that a schema allows come from llguidance (docs/adr/0010). What it does not know is that
an answer must end: this module keeps a plan beside each answer, tokens that would complete it.

    answer so far   {"shop": "Spar", "total":
    plan                                       0 }

A chosen token is taken if a plan for what follows it fits into the tokens that are left; if none
does, the next token of the old plan is taken in its place. So there is always a plan that fits, and
an answer is complete when its tokens run out. If even the first plan does not fit, nothing runs.
"""

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from omni.closing import Bytes, Place, find_ending
from omni.errors import SchemaError
from omni.schema import check_keywords, literals_of, narrow, parts_of

if TYPE_CHECKING:
    from llguidance import LLMatcher

MAX_GRAMMARS = 64  # kept of one tokenizer; the smallest take 65 kB each (measured)
LONGEST_ENDING = 4_096  # tokens; a schema whose shortest answer is longer is refused
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
ESCAPES = '"\\bfnrt'  # \uXXXX would let a key come twice in two spellings


class Grammars:
    """The grammars of one tokenizer, of which those used last are kept. Threads may share it.

    Args:
        tokenizer: A fast tokenizer.
        stop: Ids that end an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Iterable[int]) -> None:
        self.tokenizer = tokenizer
        self.stop = sorted(stop)
        self.compiled: dict[str, Grammar] = {}
        self.bytes: Bytes | None = None

    def compile(self, schema: Mapping[str, Any]) -> "Grammar":
        """The grammar of a schema.

        Raises:
            SchemaError: The schema is wrong, has parts that no grammar can keep, or nothing is
                valid for it.
        """
        text = json.dumps(schema)  # the order of properties is that of the answer
        grammar = self.compiled.pop(text, None)
        if grammar is None:
            given = json.loads(text)
            check_keywords(given)
            grammar = Grammar(given, self._bytes())
        self.compiled[text] = grammar  # behind those that were used before it
        for oldest in list(self.compiled)[:-MAX_GRAMMARS]:
            self.compiled.pop(oldest, None)  # unless another thread was first
        return grammar

    def _bytes(self) -> Bytes:
        if self.bytes is None:
            if not isinstance(self.tokenizer, PreTrainedTokenizerFast):
                raise SchemaError(
                    f"The tokenizer is a {type(self.tokenizer).__name__}; answers by a schema need "
                    "a fast one (tokenizer.json)."
                )
            from llguidance.hf import from_tokenizer

            known = from_tokenizer(self.tokenizer, eos_token=self.stop)
            self.bytes = Bytes(known, self.stop[0])
        return self.bytes


class Grammar:
    """What a schema allows, token by token.

    Args:
        given: The schema.
        bytes_of: The tokenizer.

    Raises:
        SchemaError: See `Grammars.compile`.
    """

    def __init__(self, given: dict[str, Any], bytes_of: Bytes) -> None:
        schema = narrow(given)
        self.bytes = bytes_of
        self.matcher = _matcher(schema, bytes_of)
        if self.matcher.is_error():
            raise SchemaError(_describe(given, schema, bytes_of, _first_line(self.matcher)))
        self.literals = [
            bytes_of.tokenizer.tokenize_str(json.dumps(text, ensure_ascii=False)[1:-1])
            for text in literals_of(schema)
        ]
        ending = find_ending(self.matcher, Place(), bytes_of, LONGEST_ENDING, self.literals)
        if ending is None:
            raise SchemaError(
                f"No answer of at most {LONGEST_ENDING} tokens was found for the schema. A "
                "recursive part needs a way to end, such as null or an empty list; a pattern may "
                "have to be simpler."
            )
        self.shortest = ending
        """Tokens of a short answer, without what ends it."""

    def start(self) -> "Answer":
        """A new answer."""
        return Answer(self)


class Answer:
    """The state of one answer.

    Args:
        grammar: What it keeps to.
    """

    def __init__(self, grammar: Grammar) -> None:
        self.bytes = grammar.bytes
        self.literals = grammar.literals
        self.matcher = grammar.matcher.deep_copy()
        self.plan = list(grammar.shortest)
        self.place = Place()
        self.was_steered = False
        """Whether a token was replaced for the answer to end in time."""

    def allowed(self, num_ids: int) -> Bool[Tensor, " vocab"]:
        """The tokens that may come next, of ``num_ids``; those that end the answer among them.

        Raises:
            SchemaError: The schema is too complex for the grammar library.
        """
        mask = np.unpackbits(
            np.frombuffer(self.matcher.compute_bitmask(), np.uint8), bitorder="little"
        )
        if self.matcher.is_error():
            raise SchemaError(f"The schema is too complex ({_first_line(self.matcher)}).")
        allowed = np.zeros(num_ids, bool)
        allowed[: len(mask)] = mask[:num_ids]
        return torch.from_numpy(allowed)

    def take(self, token: int, left: int) -> int:
        """Take a token, or the one in its place that lets the answer end in time.

        Args:
            token: One of those allowed.
            left: Tokens that the answer may still have, this one included.

        Returns:
            The token that was taken.
        """
        if token in self.bytes.stops:
            return token
        follows = self.matcher.deep_copy()
        follows.consume_token(token)
        plan, place = self._plan_after(follows, token, left - 1)
        if plan is None or len(plan) >= left:
            assert len(self.plan) <= left
            self.was_steered = True
            if not self.plan:
                return self.bytes.stop
            token, *plan = self.plan
            place = self.place.after(self.bytes[token])
            self.matcher.consume_token(token)
        else:
            self.matcher = follows
        self.plan, self.place = plan, place
        return token

    @property
    def is_closed(self) -> bool:
        """Whether it is valid as it is, and nothing can follow."""
        return bool(self.matcher.is_accepting() and self.matcher.is_stopped())

    def _plan_after(
        self, follows: "LLMatcher", token: int, left: int
    ) -> tuple[list[int] | None, Place]:
        place = self.place.after(self.bytes[token])
        if self.plan and self.plan[0] == token:
            return self.plan[1:], place
        for skipped in range(len(self.plan), -1, -1):  # most tokens leave the end as it was
            rest = self.plan[skipped:]
            if follows.validate_tokens([*rest, self.bytes.stop]) == len(rest) + 1:
                return rest, place
        longest = min(left, LONGEST_ENDING)
        return find_ending(follows, place, self.bytes, longest, self.literals), place


def _matcher(schema: dict[str, Any], bytes_of: Bytes) -> "LLMatcher":
    from llguidance import LLMatcher

    grammar = LLMatcher.grammar_from_json_schema(
        schema, overrides={**SPACING, "json_allowed_escapes": ESCAPES}
    )
    return LLMatcher(bytes_of.tokenizer, grammar, log_level=0)


def _describe(given: dict[str, Any], schema: dict[str, Any], bytes_of: Bytes, error: str) -> str:
    """Name the innermost part of a schema that cannot be kept."""
    shared: dict[str, Any] = {k: schema[k] for k in ("$defs", "definitions") if k in schema}
    as_given = dict(parts_of(given))
    for pointer, part in parts_of(schema):
        if pointer not in as_given:
            continue
        matcher = _matcher({**shared, **part}, bytes_of)
        if matcher.is_error():
            shown = {k: v for k, v in as_given[pointer].items() if k not in shared}
            return (
                f"The schema cannot be kept at {pointer}, {json.dumps(shown):.120}: "
                f"{_first_line(matcher)}. Leave that out, or say it in other keywords."
            )
    return f"The schema cannot be kept: {error}."


def _first_line(matcher: "LLMatcher") -> str:
    lines = [line.strip() for line in matcher.get_error().splitlines() if line.strip()]
    return (lines[-1] if lines and "parse error" in lines[0] else "".join(lines[:1])).rstrip(".")
