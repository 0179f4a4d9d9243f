"""A request's reducers against what the checkpoint has been made and trained for."""

import warnings
from inspect import signature

from omni.config import OmniConfig
from omni.errors import RequestError
from token_reduction import (
    REDUCERS,
    Chain,
    Learned,
    Modality,
    Reducer,
    Resampler,
    TokenShape,
    Tome,
    Tubelet,
    build,
    parse,
)

PROBES = {"image": (1, 8, 8), "video": (4, 8, 8), "audio": (64, 1, 1)}  # grids; any would do


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
        RequestError: The spec is wrong, has a reducer that the weights fix, or needs a trained
            scorer or resampler that the checkpoint lacks, or more queries than it has.

    Warns:
        ReductionWarning: The rate, or the number of queries, lies outside those of training.
    """
    try:
        reducer = build(spec)
        if modality != "video":
            reducer.part("frames").plan(TokenShape.full(modality, (1, 1, 1)))
    except ValueError as error:
        raise RequestError(f"Reduction {spec!r} for {modality}: {error}") from error
    if "attention" in reducer.cues and any(isinstance(m, Tome) for m in members(reducer)):
        raise RequestError(
            f"Reduction {spec!r} for {modality} merges patches inside the tower (tome) and asks "
            "what the tower attends to; of merged patches that is not known. Use one of the two."
        )
    if "attention" in reducer.cues and not config.vision_config.num_cls_tokens:
        raise RequestError(
            f"Reduction {spec!r} for {modality} asks what the tower's class tokens attend to; this "
            "checkpoint's tower has none. Choose prune_merge, which does without."
        )
    if sum(isinstance(member, Tome) for member in members(reducer)) > 1:
        raise RequestError(f"Reduction {spec!r} for {modality} has tome twice; expected it once.")
    for call, member in zip(parse(spec), map(build, spec.split("|")), strict=True):
        if member.stage == "before_projector" or isinstance(member, Tubelet):
            raise RequestError(
                f"Reduction {spec!r} for {modality} has {call.name}, which belongs to the weights "
                "of a checkpoint: the model does that itself, as its config says. Leave it out."
            )
        if isinstance(member, Learned):
            _check_learned(member, spec, modality, config)
        if isinstance(member, Resampler):
            _check_resampler(member, spec, modality, config)
    return reducer


def reducers_with_rate(modality: Modality, config: OmniConfig) -> list[str]:
    """Names of the reducers that take a rate and make a prompt of this checkpoint shorter.

    Args:
        modality: What they are to reduce.
        config: The model's config.
    """
    probe = TokenShape.full(modality, PROBES[modality])
    found = []
    for name, reducer in REDUCERS.items():
        if "rate" not in signature(reducer).parameters:
            continue
        try:
            with warnings.catch_warnings(action="ignore", category=ReductionWarning):
                shape = check_reduction(f"{name}(0.5)", modality, config).plan(probe)
        except (ValueError, RequestError):
            continue
        if shape.num_tokens < probe.num_tokens:
            found.append(name)
    return found


def split_frames(spec: str) -> tuple[list[str], list[str]]:
    """The reducers of a spec as written: those that choose frames, and those that come later."""
    frames: list[str] = []
    later: list[str] = []
    for part in (part.strip() for part in spec.split("|")):
        for member in members(build(part)):  # none in identity
            (frames if member.stage == "frames" else later).append(part)
    return frames, later


def _check_learned(member: Learned, spec: str, modality: Modality, config: OmniConfig) -> None:
    trained = config.token_scorers.get(modality)
    if trained is None:
        have = ", ".join(config.token_scorers) or "none"
        raise RequestError(
            f"Reduction {spec!r} for {modality} needs a trained scorer; this checkpoint has them "
            f"for: {have}. Train one (omni finetune scorer), or choose a reducer without training."
        )
    low, high = trained
    if not low <= member.rate <= high:
        warnings.warn(
            f"Reduction {spec!r} for {modality}: the scorer was trained at rates from {low:g} to "
            f"{high:g}. It runs, but how well is not known.",
            ReductionWarning,
            stacklevel=2,
        )


def _check_resampler(member: Resampler, spec: str, modality: Modality, config: OmniConfig) -> None:
    trained = config.resamplers.get(modality)
    if trained is None:
        have = ", ".join(config.resamplers) or "none"
        raise RequestError(
            f"Reduction {spec!r} for {modality} needs trained queries; this checkpoint has them "
            f"for: {have}. Train them (omni finetune scorer --queries), or choose a reducer "
            "without training."
        )
    fewest, most = trained
    if member.num_queries > most:
        raise RequestError(
            f"Reduction {spec!r} for {modality} asks for {member.num_queries} queries; this "
            f"checkpoint has {most}. Ask for at most as many."
        )
    if member.num_queries < fewest:
        warnings.warn(
            f"Reduction {spec!r} for {modality}: the resampler was trained with {fewest} to {most} "
            "queries. It runs, but how well is not known.",
            ReductionWarning,
            stacklevel=2,
        )
