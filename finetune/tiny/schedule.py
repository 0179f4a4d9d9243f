"""How far a training is, by its steps or by the clock, and how its rates begin."""

WARMUP_SHARE = 0.2  # of a run at most; a short one would otherwise never reach its rates


def share_of_run(step: int, steps: int, seconds: float, minutes: float | None) -> float:
    """Say how much of a run is over, from 0 to 1.

    Args:
        step: Steps done.
        steps: Steps of the whole run.
        seconds: Since its start.
        minutes: The run also ends after this time; None sets no such end.
    """
    by_clock = seconds / (60 * minutes) if minutes else 0.0
    return min(max(step / steps, by_clock), 1.0)


def warm_up(step: int, steps: int, warmup_steps: int) -> float:
    """Return the share of the rates at a step counted from 0: it rises linearly to 1.

    Args:
        step: Which one.
        steps: Steps of the whole run.
        warmup_steps: Steps until 1, unless they are more than `WARMUP_SHARE` of the run.
    """
    return min((step + 1) / max(1, min(warmup_steps, round(WARMUP_SHARE * steps))), 1.0)
