"""A request's reducers against what the checkpoint has been made and trained for."""

import warnings

from omni.config import OmniConfig
from omni.errors import RequestError
from token_reduction import Chain, Learned, Modality, Reducer, Tome, build


class ReductionWarning(UserWarning):
    """A reduction runs, but outside what the checkpoint was trained for."""


def members(reducer: Reducer) -> list[Reducer]:
    """The reducers of a chain, or the one there is."""
    return reducer.members if isinstance(reducer, Chain) else [reducer]


def check_reduction(spec: str, modality: Modality, config: OmniConfig) -> Reducer:
    """Build a request's reducer, if this checkpoint can run it.

    Args:
        spec: Spec string.
        modality: What it is for.
        config: The model's config.

    Returns:
        The reducer, without trained weights: enough to plan.

    Raises:
        RequestError: The spec is wrong, or needs a trained scorer that the checkpoint lacks.

    Warns:
        ReductionWarning: The rate lies outside those the scorer was trained at.
    """
    try:
        reducer = build(spec)
    except ValueError as error:
        raise RequestError(f"Reduction {spec!r} for {modality}: {error}") from error
    if sum(isinstance(member, Tome) for member in members(reducer)) > 1:
        raise RequestError(f"Reduction {spec!r} for {modality} has tome twice; expected it once.")
    for member in members(reducer):
        if isinstance(member, Learned):
            _check_learned(member, spec, modality, config)
    return reducer


def _check_learned(member: Learned, spec: str, modality: Modality, config: OmniConfig) -> None:
    trained = config.token_scorers.get(modality)
    if trained is None:
        have = ", ".join(config.token_scorers) or "none"
        raise RequestError(
            f"Reduction {spec!r} for {modality} needs a trained scorer; this checkpoint has them "
            f"for: {have}. Train one (finetune.scorer), or choose a reducer without training."
        )
    low, high = trained
    if not low <= member.rate <= high:
        warnings.warn(
            f"Reduction {spec!r} for {modality}: the scorer was trained at rates from {low:g} to "
            f"{high:g}. It runs, but how well is not known.",
            ReductionWarning,
            stacklevel=2,
        )
