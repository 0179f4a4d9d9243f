"""What a request costs, stage by stage: counted before it runs, timed while it runs."""

import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from omni.budget import BudgetReport
from omni.config import OmniConfig
from omni.encoding import StageTimes
from omni.flops import prefill_flops, tower_flops
from omni.footprint import Runtime, footprint
from omni.inputs import MediaItem, OmniInputs
from omni.reduction import split_frames
from omni.steps import walk
from token_reduction import TokenShape

_TILE = re.compile(r" tile \d+ of \d+$")  # ends the name of a tile
_LATER_TILE = re.compile(r" tile (?!1 )\d+ of \d+$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One step of a medium's way to the decoder, and how many pieces come out of it."""

    name: str
    count: int


@dataclass(slots=True, kw_only=True)
class MediaEntry:
    """One medium's part of the ledger.

    Attributes:
        name: File name, page or track.
        modality: ``image``, ``video`` or ``audio``.
        facts: Pixels, seconds, frames of the source.
        chosen: Settings that it was planned with: grid, frames, dpi, reduction.
        asked: Those of them that a budget lowered, as they were asked for.
        stages: Counts in order; the last but one is what the decoder reads as placeholders, the
            last is the whole block with labels and delimiters between steps.
        tower_flops: FLOPs of encoding and projecting it (`omni.flops`).
        seconds: Time in ``decode``, ``encode`` and ``reduce``; empty in a plan.
    """

    name: str
    modality: str
    facts: dict[str, Any]
    chosen: dict[str, Any]
    asked: dict[str, Any]
    stages: list[Stage]
    tower_flops: int
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Ledger:
    """Tokens, FLOPs, bytes and seconds of one request.

    Attributes:
        media: One entry a medium.
        text_tokens: Prompt tokens that belong to no medium's block.
        prompt_tokens: All prompt tokens.
        reused_tokens: Those of them that an open session had read before; FLOPs and seconds are
            those of the rest, and of no medium.
        answer_tokens: Tokens of the answer; in a plan, the room left for it.
        context_tokens: What the context holds.
        tower_flops: FLOPs of the encoders and projectors over all media.
        prefill_flops: FLOPs of the decoder over the prompt.
        kv_cache_bytes: Keys and values of prompt and answer.
        mamba_state_bytes: Recurrent states; they do not grow with the request.
        embedding_bytes: Estimate: media tokens on their way to the decoder, prompt embeddings.
        activation_bytes: Estimate: the widest of preparing a medium, a tower pass, a prefill chunk.
        overhead_bytes: What allocator and libraries take beside the tensors.
        memory_bytes: All five together, the working memory of the request (`omni.footprint`).
        budget: How the request was made to fit; None without a budget.
        seconds: Time in ``prepare``, ``prefill``, ``decode`` and in all; empty in a plan.
    """

    media: list[MediaEntry]
    text_tokens: int
    prompt_tokens: int
    answer_tokens: int
    context_tokens: int
    tower_flops: int
    prefill_flops: int
    kv_cache_bytes: int
    mamba_state_bytes: int
    embedding_bytes: int
    activation_bytes: int
    overhead_bytes: int
    memory_bytes: int
    budget: BudgetReport | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    reused_tokens: int = 0

    @property
    def lowered(self) -> list[str]:
        """What a budget changed, such as ``clip.mp4: num_frames 16 → 8``; nothing if all fits.

        One line for each medium, in their order; those of one name have their place behind it.
        """
        # Tiles of a picture are changed alike: the first speaks for all.
        media = [entry for entry in self.media if not _LATER_TILE.search(entry.name)]
        names = [_TILE.sub("", entry.name).rsplit("/", 1)[-1] for entry in media]
        return [
            (name if names.count(name) == 1 else f"{name} ({place} of {len(media)})")
            + ": "
            + ", ".join(
                f"{setting} {readable(asked)} → {readable(entry.chosen[setting])}"
                for setting, asked in entry.asked.items()
            )
            for place, (name, entry) in enumerate(zip(names, media, strict=True), start=1)
            if entry.asked
        ]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Ledger":
        """What `to_dict` gave."""
        media = [
            MediaEntry(**{**entry, "stages": [Stage(**stage) for stage in entry["stages"]]})
            for entry in values["media"]
        ]
        budget = None if values["budget"] is None else BudgetReport(**values["budget"])
        return cls(**{**values, "media": media, "budget": budget})


def make_ledger(
    config: OmniConfig,
    inputs: OmniInputs,
    *,
    context_tokens: int,
    answer_tokens: int,
    runtime: Runtime | None = None,
) -> Ledger:
    """Count a request without running it.

    Args:
        config: The model's config.
        inputs: One request.
        context_tokens: What the context holds.
        answer_tokens: Room for the answer.
        runtime: How the model is loaded; by default float32 on a CPU.

    Returns:
        A ledger without times.
    """
    prompt = inputs.num_tokens
    blocks = sum(item.block_length for item in inputs.media)
    media = [_entry(config, item) for item in inputs.media]
    needed = footprint(
        config,
        inputs.media,
        prompt_tokens=prompt,
        answer_tokens=answer_tokens,
        runtime=runtime or Runtime(),
    )
    return Ledger(
        media=media,
        text_tokens=prompt - blocks,
        prompt_tokens=prompt,
        answer_tokens=answer_tokens,
        context_tokens=context_tokens,
        tower_flops=sum(entry.tower_flops for entry in media),
        prefill_flops=prefill_flops(config, prompt),
        **asdict(needed),
        memory_bytes=needed.total_bytes,
        budget=inputs.budget,
    )


def continue_ledger(
    config: OmniConfig,
    opened: Ledger,
    *,
    new_tokens: int,
    answer_tokens: int,
    context_tokens: int,
    runtime: Runtime,
) -> Ledger:
    """Count a question to an open session: only what is new is read, encoded is nothing.

    Args:
        config: The model's config.
        opened: Ledger of what the session has read.
        new_tokens: Prompt tokens that follow it.
        answer_tokens: Room for the answer.
        context_tokens: What the context holds.
        runtime: How the model is loaded.

    Returns:
        A ledger without times. Its bytes are of the whole request, since all of it is remembered.
    """
    past = opened.prompt_tokens
    needed = footprint(
        config,
        (),
        prompt_tokens=past + new_tokens,
        answer_tokens=answer_tokens,
        runtime=runtime,
        past=past,
    )
    return replace(
        opened,
        media=[replace(entry, tower_flops=0, seconds={}) for entry in opened.media],
        text_tokens=opened.text_tokens + new_tokens,
        prompt_tokens=past + new_tokens,
        reused_tokens=past,
        answer_tokens=answer_tokens,
        context_tokens=context_tokens,
        tower_flops=0,
        prefill_flops=prefill_flops(config, new_tokens, past=past),
        **asdict(needed),
        memory_bytes=needed.total_bytes,
        seconds={},
    )


def join_ledgers(reading: Ledger, question: Ledger) -> Ledger:
    """What opening media and asking the first question about them took together.

    Args:
        reading: Of `omni.session.Session`.
        question: Of a reply of that session.
    """
    seconds = {
        name: round(reading.seconds.get(name, 0.0) + value, 4)
        for name, value in question.seconds.items()
    }
    return replace(
        question,
        media=reading.media,
        reused_tokens=0,
        tower_flops=reading.tower_flops,
        prefill_flops=reading.prefill_flops + question.prefill_flops,
        seconds=seconds,
    )


def _entry(config: OmniConfig, item: MediaItem) -> MediaEntry:
    """Walk the same reductions that the model applies, by shape alone."""
    source = TokenShape.full(item.modality, item.grid)
    stages: list[Stage] = []
    if item.modality == "video":
        at_frames, _ = split_frames(item.reduction)
        sampled = item.facts.get("sampled_frames", item.grid[0])
        stages += [Stage(name="frames", count=sampled)]
        stages += [Stage(name="|".join(at_frames), count=item.grid[0])] if at_frames else []
    unit = "tokens" if item.modality == "audio" else "patches"
    stages += [Stage(name=unit, count=source.num_tokens)]
    for step in walk(config, item.modality, item.grid, item.reduction):
        stages.append(Stage(name=step.spec, count=step.shape.num_tokens))
    stages.append(Stage(name="prompt", count=item.block_length))
    return MediaEntry(
        name=item.name,
        modality=item.modality,
        facts=dict(item.facts),
        chosen=dict(item.chosen),
        asked=dict(item.asked),
        stages=stages,
        tower_flops=tower_flops(config, item),
    )


def readable(setting: Any) -> str:
    """A setting as people write it: a grid as ``8x30``."""
    return "x".join(map(str, setting)) if isinstance(setting, list) else str(setting)


def readable_flops(count: int) -> str:
    """FLOPs in the largest unit that leaves a whole part; small ones in millions."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if count >= size:
            return f"{count / size:.1f} {unit}FLOP"
    return f"{count / 1e6:.1f} MFLOP"


def add_times(ledger: Ledger, times: StageTimes) -> None:
    """Fill in the seconds of each medium's stages."""
    for index, entry in enumerate(ledger.media):
        entry.seconds = {
            "decode": round(times.decode_s[index], 4),
            "encode": round(times.encode_s[index], 4),
            "reduce": round(times.reduce_s[index], 4),
        }
