"""What a request costs, stage by stage: counted before it runs, timed while it runs."""

from dataclasses import asdict, dataclass, field
from typing import Any

from omni.config import OmniConfig
from omni.encoding import StageTimes
from omni.inputs import MediaItem, OmniInputs
from omni.reduction import split_frames
from token_reduction import TokenShape, build

STATE_BYTES = 4  # the Mamba state is kept in float32


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
        stages: Counts in order; the last but one is what the decoder reads as placeholders, the
            last is the whole block with labels and delimiters between steps.
        seconds: Time in ``decode``, ``encode`` and ``reduce``; empty in a plan.
    """

    name: str
    modality: str
    facts: dict[str, Any]
    stages: list[Stage]
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Ledger:
    """Tokens, bytes and seconds of one request.

    Attributes:
        media: One entry a medium.
        text_tokens: Prompt tokens that belong to no medium's block.
        prompt_tokens: All prompt tokens.
        answer_tokens: Tokens of the answer; in a plan, the room left for it.
        context_tokens: What the context holds.
        kv_cache_bytes: Keys and values of prompt and answer.
        mamba_state_bytes: Recurrent states; they do not grow with the request.
        seconds: Time in ``prepare``, ``prefill``, ``decode`` and in all; empty in a plan.
    """

    media: list[MediaEntry]
    text_tokens: int
    prompt_tokens: int
    answer_tokens: int
    context_tokens: int
    kv_cache_bytes: int
    mamba_state_bytes: int
    seconds: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


def make_ledger(
    config: OmniConfig,
    inputs: OmniInputs,
    *,
    context_tokens: int,
    answer_tokens: int,
    bytes_per_value: int = 4,
) -> Ledger:
    """Count a request without running it.

    Args:
        config: The model's config.
        inputs: One request.
        context_tokens: What the context holds.
        answer_tokens: Room for the answer.
        bytes_per_value: Width of the decoder's number format.

    Returns:
        A ledger without times.
    """
    prompt = inputs.num_tokens
    blocks = sum(item.block_length for item in inputs.media)
    kv_bytes, state_bytes = cache_bytes(config, prompt + answer_tokens, bytes_per_value)
    return Ledger(
        media=[_entry(config, item) for item in inputs.media],
        text_tokens=prompt - blocks,
        prompt_tokens=prompt,
        answer_tokens=answer_tokens,
        context_tokens=context_tokens,
        kv_cache_bytes=kv_bytes,
        mamba_state_bytes=state_bytes,
    )


def cache_bytes(config: OmniConfig, num_tokens: int, bytes_per_value: int) -> tuple[int, int]:
    """Bytes of the attention cache and of the Mamba states of one sequence.

    Args:
        config: The model's config; a decoder without Mamba layers has no states.
        num_tokens: Prompt and answer.
        bytes_per_value: Width of the decoder's number format.

    Returns:
        Both, in this order.
    """
    text = config.text_config
    kinds = list(getattr(text, "layer_types", None) or [])
    attention = kinds.count("full_attention") or (0 if kinds else text.num_hidden_layers)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    kv = attention * 2 * heads * head_dim * num_tokens * bytes_per_value
    mamba = kinds.count("linear_attention")
    if not mamba:
        return kv, 0
    inner = text.mamba_num_heads * text.mamba_head_dim
    channels = inner + 2 * text.n_groups * text.ssm_state_size
    state = inner * text.ssm_state_size * STATE_BYTES
    window = channels * (text.conv_kernel - 1) * bytes_per_value
    return kv, mamba * (state + window)


def _entry(config: OmniConfig, item: MediaItem) -> MediaEntry:
    """Walk the same reductions that the model applies, by shape alone."""
    shape = TokenShape.full(item.modality, item.grid)
    at_frames, later = split_frames(item.reduction)
    stages: list[Stage] = []
    if item.modality == "video":
        sampled = item.facts.get("sampled_frames", item.grid[0])
        stages += [Stage(name="frames", count=sampled)]
        stages += [Stage(name="|".join(at_frames), count=item.grid[0])] if at_frames else []
    stages += [
        Stage(name="tokens" if item.modality == "audio" else "patches", count=shape.num_tokens)
    ]
    for spec in (*structural_specs(config, item.modality), *later):
        shape = build(spec).plan(shape)
        stages.append(Stage(name=spec, count=shape.num_tokens))
    stages.append(Stage(name="prompt", count=item.block_length))
    return MediaEntry(name=item.name, modality=item.modality, facts=dict(item.facts), stages=stages)


def structural_specs(config: OmniConfig, modality: str) -> list[str]:
    """Specs of the reductions that a model's weights are made for, in order."""
    shuffle = f"pixel_shuffle({config.downsample_ratio})"
    return {
        "image": [shuffle],
        "video": [f"tubelet({config.tubelet_frames})", shuffle],
        "audio": [],
    }[modality]


def add_times(ledger: Ledger, times: StageTimes) -> None:
    """Fill in the seconds of each medium's stages."""
    for index, entry in enumerate(ledger.media):
        entry.seconds = {
            "decode": round(times.decode_s[index], 4),
            "encode": round(times.encode_s[index], 4),
            "reduce": round(times.reduce_s[index], 4),
        }
