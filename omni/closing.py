"""The shortest way, nearly, in which a JSON text that has begun can end and be valid.

A grammar is asked which bytes may come next, so no rule of a schema is known here, only what JSON
looks like: a string ends with a quote, an object with a brace. Where that is not allowed yet (a
pattern, a least length, a number with a bound), what leads there is searched level by level.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

CLOSERS = b"}],"
STARTS = b'1234567890ntf"-[{.e+ :abcdefghijklmopqrsuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ'
SAMPLES = b"aA0 1z9Z-._/@:,x"  # where a character is free, these stand for the others
FREE = 40  # allowed bytes from which on a character counts as free
MOST_LOOKS = 8_000  # states looked at for endings up to one length before it is given up
MOST_PER_LEVEL = 24


class Bytes:
    """Tokens as bytes, and those of a single byte.

    Args:
        tokenizer: Of llguidance.
        stop: The id that ends an answer.
    """

    def __init__(self, tokenizer: "LLTokenizer", stop: int) -> None:
        self.tokenizer = tokenizer
        self.stop = stop
        self.stops = frozenset(tokenizer.eos_tokens)
        self.token_of: dict[int, int] = {}
        for token in range(tokenizer.vocab_size):
            found = tokenizer.decode_bytes([token])
            if len(found) == 1 and not tokenizer.is_special_token(token):
                self.token_of.setdefault(found[0], token)
        self.bytes = np.array(sorted(self.token_of), dtype=np.int64)
        self.tokens = np.array([self.token_of[byte] for byte in self.bytes], dtype=np.int64)

    def __getitem__(self, token: int) -> bytes:
        return bytes(self.tokenizer.decode_bytes([token]))

    def next(self, matcher: "LLMatcher") -> bytes:
        """The single bytes that may come next."""
        mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        allowed = mask[self.tokens // 8] >> (self.tokens % 8) & 1
        return self.bytes[allowed.astype(bool)].astype(np.uint8).tobytes()


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a JSON text its end is."""

    in_string: bool = False
    is_escaped: bool = False

    def after(self, text: bytes) -> "Place":
        """The place after some more bytes."""
        in_string, is_escaped = self.in_string, self.is_escaped
        for byte in text:
            if is_escaped:
                is_escaped = False
            elif byte == ord("\\"):
                is_escaped = in_string
            elif byte == ord('"'):
                in_string = not in_string
        return Place(in_string, is_escaped)


@dataclass(slots=True)
class _State:
    matcher: "LLMatcher"
    place: Place
    path: list[int]

    def after(self, tokens: list[int], bytes_of: Bytes) -> "_State":
        matcher = self.matcher.deep_copy()
        matcher.consume_tokens(tokens)
        place = self.place
        for token in tokens:
            place = place.after(bytes_of[token])
        return _State(matcher, place, self.path + tokens)


def find_ending(
    matcher: "LLMatcher",
    place: Place,
    bytes_of: Bytes,
    longest: int,
    literals: Sequence[Sequence[int]] = (),
) -> list[int] | None:
    """Tokens which make a text valid.

    Args:
        matcher: The state of the grammar; left as it is.
        place: Where the text ends.
        bytes_of: The tokenizer.
        longest: Most tokens.
        literals: Tokens of text that may have to follow inside strings, where any may.

    Returns:
        The tokens, none if the text is valid already. None if no ending of that length is found.
    """
    bound = 16
    while True:  # a short ending first, lest a recursive part be followed all the way down
        search = _Search(bytes_of, min(bound, longest), literals)
        found = search.run(_State(matcher, place, []))
        if found is not None or bound >= longest:
            return found
        bound *= 4


class _Search:
    def __init__(
        self, bytes_of: Bytes, longest: int, literals: Sequence[Sequence[int]] = ()
    ) -> None:
        self.bytes = bytes_of
        self.longest = longest
        self.literals = [list(tokens) for tokens in literals]
        self.looks = 0

    def run(self, start: _State) -> list[int] | None:
        """Depth first over the ways to go on, the most closing one first."""
        waiting = [start]
        while waiting and self.looks <= MOST_LOOKS:
            state = self._forced(waiting.pop())
            self.looks += 1
            if len(state.path) > self.longest:
                continue
            if state.matcher.is_accepting():
                return state.path
            waiting.extend(reversed(self._ways(state)))
        return None

    def _forced(self, state: _State) -> _State:
        tokens = state.matcher.compute_ff_tokens()
        return state.after(tokens, self.bytes) if tokens else state

    def _ways(self, state: _State) -> list[_State]:
        """What to do next: close; else what leads to where something can be closed."""
        closer = self._closer(state)
        if closer is not None:
            return [state.after([closer], self.bytes)]
        level = [state]
        while level and len(level[0].path) < self.longest and self.looks <= MOST_LOOKS:
            ways: list[_State] = []
            following: list[_State] = []
            seen: set[tuple[bytes, Place]] = set()
            for before, tokens, is_literal in self._steps(level):
                self.looks += 1
                after = before.after(tokens, self.bytes)
                # Where equal tokens may follow, it is most often the same: one of them is enough.
                sign = (after.matcher.compute_bitmask(), after.place)
                if sign in seen and not is_literal:
                    continue
                seen.add(sign)
                (ways if self._is_way_out(after, before) else following).append(after)
            if ways:
                return ways
            level = following[:MOST_PER_LEVEL]
        return []

    def _steps(self, level: Sequence[_State]) -> Iterator[tuple[_State, list[int], bool]]:
        for state in level:
            allowed = self.bytes.next(state.matcher)
            order = STARTS
            if state.place.in_string and len(allowed) >= FREE:
                order = SAMPLES
                for tokens in self.literals:
                    if state.matcher.validate_tokens(tokens) == len(tokens):
                        yield state, tokens, True
            first = bytes(byte for byte in order if byte in allowed)
            rest = b"" if first and order is SAMPLES else bytes(set(allowed) - set(first))
            for byte in first + rest:
                yield state, [self.bytes.token_of[byte]], False

    def _closer(self, state: _State) -> int | None:
        if state.place.is_escaped:
            return None
        for byte in b'"' if state.place.in_string else CLOSERS:
            token = self.bytes.token_of.get(byte)
            if token is not None and state.matcher.validate_tokens([token]):
                return token
        return None

    def _is_way_out(self, after: _State, before: _State) -> bool:
        if after.place.in_string != before.place.in_string:
            return True
        if after.matcher.is_accepting() or after.matcher.compute_ff_tokens():
            return True
        if not after.place.in_string and self.bytes[after.path[-1]] in (b"{", b"["):
            return True
        return self._closer(after) is not None
