"""The way of one medium from source cells to decoder tokens, by shape alone.

Everything that counts before a model runs walks this way: the prompt, the ledger, FLOPs, memory.
"""

from dataclasses import dataclass
from functools import lru_cache

from omni.config import OmniConfig
from omni.errors import RequestError
from token_reduction import STAGES, Grid, Modality, Stage, TokenShape, build


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One reducer on the way.

    Attributes:
        spec: The reducer as it is written, such as ``evs(0.7)``.
        stage: Where it sits.
        shape: What comes out of it.
    """

    spec: str
    stage: Stage
    shape: TokenShape


def structural_specs(config: OmniConfig, modality: str) -> list[str]:
    """Specs of the reductions that a model's weights are made for, in order."""
    if modality == "audio":
        return []
    shuffle = f"pixel_shuffle({config.downsample_ratio})"
    return [shuffle] if modality == "image" else [f"tubelet({config.tubelet_frames})", shuffle]


def walk(config: OmniConfig, modality: Modality, grid: Grid, reduction: str) -> tuple[Step, ...]:
    """Every reducer that an item passes, in order of stages, the fixed ones of a stage first.

    Reducers of the request that choose frames are done when an item has a grid, and take no step.

    Args:
        config: The model's config, for the fixed reductions.
        modality: What the item is.
        grid: Source cells ``(t, h, w)``, as in ``MediaItem.grid``.
        reduction: Spec of the chosen reduction; ``identity`` takes no step.

    Returns:
        The steps; none for a recording that is not reduced.

    Raises:
        RequestError: The spec cannot be read, or does not take such an item.
    """
    return _walk(tuple(structural_specs(config, modality)), modality, grid, reduction)


def shape_after(steps: tuple[Step, ...], stage: Stage, source: TokenShape) -> TokenShape:
    """The shape of an item when all steps up to and with a stage are done.

    Args:
        steps: From `walk`.
        stage: The last stage that counts.
        source: The shape before any step.
    """
    done = [step.shape for step in steps if STAGES.index(step.stage) <= STAGES.index(stage)]
    return done[-1] if done else source


_build = lru_cache(maxsize=256)(build)  # to plan with, never to run


@lru_cache(maxsize=4096)  # a search for rates that fit asks for the same shapes again and again
def _walk(
    fixed: tuple[str, ...], modality: Modality, grid: Grid, reduction: str
) -> tuple[Step, ...]:
    try:
        chosen = [(part.strip(), _build(part.strip())) for part in reduction.split("|")]
        reducers = [(spec, _build(spec)) for spec in fixed]
        reducers += [
            (spec, reducer)
            for spec, reducer in chosen
            if spec != "identity" and reducer.stage != "frames"
        ]
        reducers.sort(key=lambda named: STAGES.index(named[1].stage))
        shape, steps = TokenShape.full(modality, grid), []
        for spec, reducer in reducers:
            shape = reducer.plan(shape)
            steps.append(Step(spec=spec, stage=reducer.stage, shape=shape))
    except ValueError as error:
        raise RequestError(f"Reduction {reduction!r} for {modality}: {error}") from error
    return tuple(steps)
