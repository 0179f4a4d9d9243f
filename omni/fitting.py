"""Make one request fit its budget: count what each rung of the ladder needs, or refuse."""

from collections.abc import Callable, Sequence
from functools import cache

from omni.budget import (
    LADDER,
    BudgetReport,
    Cost,
    DoesNotFit,
    Limit,
    fit,
    refusal,
)
from omni.config import OmniConfig
from omni.footprint import Runtime, footprint
from omni.planned import PlannedMedium, note_asked
from omni.planning import MediaPlanner


class RequestCounter:
    """Counts a planned request exactly as the processor would build it, without building it.

    Args:
        config: The model's config.
        pieces: The prompt's text, piece by piece, for each gap between media and the two ends: one
            more than there are media. The text before a video is joined by its first label.
        count_tokens: Lengths of texts that are tokenised apart.
        answer_tokens: Room for the answer.
        runtime: How the model is loaded.
        training: Whether it is a training sample.
    """

    def __init__(
        self,
        config: OmniConfig,
        pieces: Sequence[Sequence[str]],
        count_tokens: Callable[[Sequence[str]], list[int]],
        *,
        answer_tokens: int,
        runtime: Runtime,
        training: bool = False,
    ) -> None:
        self.config = config
        self.pieces = pieces
        # Most texts are the same on every rung.
        self.count = cache(lambda texts: sum(count_tokens(texts)) if texts else 0)
        self.answer_tokens = answer_tokens
        self.runtime = runtime
        self.training = training

    def prompt_tokens(self, planned: Sequence[PlannedMedium]) -> int:
        """Length of the prompt with these media in it."""
        total = 0
        tails = [*(medium.lead_in for medium in planned), ""]
        for pieces, tail in zip(self.pieces, tails, strict=True):
            total += self.count((*pieces[:-1], pieces[-1] + tail))
        for medium in planned:
            labels = self.count(medium.step_labels) + 2 * len(medium.step_labels)
            total += 2 + sum(item.num_tokens + labels for item in medium.items)
        return total

    def count_tokens(self, planned: Sequence[PlannedMedium]) -> int:
        """Tokens of the request, its answer included."""
        return self.prompt_tokens(planned) + self.answer_tokens

    def count_bytes(self, planned: Sequence[PlannedMedium]) -> int:
        """Working memory of the request."""
        return footprint(
            self.config,
            [item for medium in planned for item in medium.items],
            prompt_tokens=self.prompt_tokens(planned),
            answer_tokens=self.answer_tokens,
            runtime=self.runtime,
            training=self.training,
        ).total_bytes


def fit_request(
    planner: MediaPlanner, counter: RequestCounter, *, context_tokens: int
) -> tuple[list[PlannedMedium], BudgetReport]:
    """Choose resolution, frames and rates of all media together, by the policy of `omni.budget`.

    Args:
        planner: Plans the media on any rung; its options hold the budget.
        counter: Counts what a plan needs.
        context_tokens: What the context holds; a budget is never more than that.

    Returns:
        The plan, each item noting what else was asked; and how it was made to fit.

    Raises:
        ContextLengthError: Not even the lowest rung fits; the message has the numbers and names
            the settings of the request that stand in the way.
    """
    options = planner.options
    limit = Limit(
        tokens=min(options.max_tokens or context_tokens, context_tokens),
        memory_bytes=options.max_memory_bytes,
    )
    try:
        found = fit(planner.plan, counter.count_tokens, counter.count_bytes, limit)
    except DoesNotFit as error:
        freed = None
        if planner.fixed:
            free = MediaPlanner(
                planner.media,
                planner.config,
                planner.settings,
                options.with_defaults(),
                max_tokens=planner.max_tokens,
            )
            lowest = free.plan(LADDER[-1])
            freed = Cost(
                tokens=counter.count_tokens(lowest), memory_bytes=counter.count_bytes(lowest)
            )
        raise refusal(
            error, limit, answer_tokens=counter.answer_tokens, fixed=planner.fixed, freed=freed
        ) from None
    return note_asked(found.chosen, found.asked), found.report
