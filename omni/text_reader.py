"""Answer tokens become text, piece by piece."""

import json
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from omni.processor import OmniProcessor


class TextReader:
    """Turns tokens into text as they come; bytes of a character wait for the rest of it.

    Args:
        processor: For the tokenizer.
        thinking: The answer starts inside a think block; only what follows it is visible.
    """

    def __init__(self, processor: OmniProcessor, thinking: bool) -> None:
        self.tokenizer = processor.tokenizer
        self.think_end = processor.think_end
        self.is_thinking = thinking
        self.thought: list[int] = []
        self.tokens: list[int] = []
        self.text = ""
        self.last_piece = ""
        self.num_tokens = 0
        self.finish_reason = "stop"

    @property
    def reasoning(self) -> str:
        """The think block's text."""
        return str(self.tokenizer.decode(self.thought, skip_special_tokens=True)).strip()

    def add(self, token: int) -> str:
        """Take a token; return the text that is now certain and was not before."""
        self.num_tokens += 1
        if self.is_thinking:
            if token == self.think_end:
                self.is_thinking = False
            else:
                self.thought.append(token)
            return ""
        self.tokens.append(token)
        return self._grow(self._decode().rstrip("\ufffd"))

    def read(
        self, steps: Iterable[list[tuple[int, int]]], ended: Collection[int] = (0,)
    ) -> Iterator[str]:
        """Take the tokens of a generation of one row; yield text as it becomes certain.

        While the model thinks, an empty piece is yielded for each token, so that who reads can
        show the reasoning grow, or stop it.

        Args:
            steps: From `omni.generation.generate`.
            ended: Then has row 0 if the model ended it (``Prefilled.ended``).
        """
        for step in steps:
            for _, token in step:
                was_thinking = self.is_thinking
                piece = self.add(token)
                if piece or was_thinking:
                    yield piece
        piece = self.finish(0 in ended).last_piece
        if piece:
            yield piece

    def parse(self, schema: Any) -> Any:
        """The answer as JSON types; None without a schema."""
        return None if schema is None else json.loads(self.text)

    def finish(self, has_ended: bool = True) -> "TextReader":
        """Give up waiting for the rest of a character; note whether the model ended it."""
        self.finish_reason = "stop" if has_ended else "length"
        self.last_piece = self._grow(self._decode())
        return self

    def _decode(self) -> str:
        return str(self.tokenizer.decode(self.tokens, skip_special_tokens=True)).lstrip("\n")

    def _grow(self, text: str) -> str:
        piece, self.text = text[len(self.text) :], text
        return piece
