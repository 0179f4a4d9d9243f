"""How long a request will take, from how long earlier ones took.

FLOPs and token counts are known before a request runs (`omni.ledger`); what a machine does in a
second is not. So nothing is said before the first answer, and then

    seconds to the first word  =  media FLOPs / their rate  +  prompt FLOPs / their rate
    seconds to the last word   =  that  +  tokens of the answer * seconds a token

with rates that are means over earlier answers, recent ones counting more. Decoding of files is
part of the first rate. Rates differ with size, so an estimate is good for requests like the last.
"""

import threading
from dataclasses import dataclass

from omni.ledger import Ledger

MEMORY = 0.7  # how much of the earlier answers is left after each new one


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Seconds from sending a request.

    Attributes:
        first_word_s: Until its prompt has been read.
        last_word_s: Until the longest answer that there is room for has been written.
    """

    first_word_s: float
    last_word_s: float


class Pace:
    """What this machine does in a second with one model. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Work and seconds of earlier answers, fading.
        self._media = [0.0, 0.0]
        self._prompt = [0.0, 0.0]
        self._answer = [0.0, 0.0]

    def note(self, ledger: Ledger) -> None:
        """Learn from the ledger of a finished reply."""
        if "total" not in ledger.seconds:
            return
        media_s = sum(sum(entry.seconds.values()) for entry in ledger.media)
        seconds = ledger.seconds
        with self._lock:
            _fade(self._media, ledger.tower_flops, media_s)
            _fade(self._prompt, ledger.prefill_flops, max(seconds["prefill"] - media_s, 0.0))
            _fade(self._answer, ledger.answer_tokens, seconds["decode"])

    def estimate(self, plan: Ledger) -> Estimate | None:
        """Seconds that a plan will take; None if nothing like it has been answered yet.

        Args:
            plan: A ledger without times.
        """
        with self._lock:
            parts = [
                _seconds(plan.tower_flops, self._media),
                _seconds(plan.prefill_flops, self._prompt),
                _seconds(plan.answer_tokens, self._answer),
            ]
        if any(part is None for part in parts):
            return None
        media, prompt, answer = (part or 0.0 for part in parts)
        return Estimate(first_word_s=media + prompt, last_word_s=media + prompt + answer)


def _fade(kept: list[float], work: float, seconds: float) -> None:
    if work > 0:
        kept[:] = MEMORY * kept[0] + work, MEMORY * kept[1] + seconds


def _seconds(work: float, kept: list[float]) -> float | None:
    """Seconds for some work; None if none of its kind has been seen."""
    if not work:
        return 0.0
    return work * kept[1] / kept[0] if kept[0] else None
