"""FLOPs of the towers and of the decoder's prefill, from configs and counts alone.

Two FLOPs are one multiply and one add. Counted are matrix products, convolutions and the Mamba
recurrence, which are nearly all of the work; norms, activations, softmax, routing and sampling
are not. The tests compare with PyTorch's own FLOP counter.

    merging         Bolya et al. 2023 (arXiv 2210.09461): fewer patches block by block
    vision tower    Vaswani et al. 2017 (arXiv 1706.03762), table 1; Dosovitskiy et al. 2021
    audio tower     Gulati et al. 2020 (arXiv 2005.08100); relative positions of Dai et al. 2019
                    (arXiv 1901.02860), section 3.3
    Mamba-2         Dao and Gu 2024 (arXiv 2405.21060), section 6: products inside chunks of
                    positions, a state between them
    experts         Fedus et al. 2022 (arXiv 2101.03961): only the chosen experts of a token run
"""

# Letters
#   L = positions of one sequence, D = width, F = hidden width of an MLP, H = query heads,
#   K = key heads, d = head width, Q = positions of a Mamba chunk, G = groups, N = state size

from math import ceil
from typing import Any

from encoders import CLIP_SAMPLES
from encoders.audio.features import HOP_LENGTH
from encoders.vision.merging import merge_counts
from omni.backbone.ssd import MAX_CHUNK_SIZE
from omni.config import OmniConfig
from omni.inputs import MediaItem
from omni.steps import shape_after, walk
from omni.towers import merging_rate
from token_reduction import TokenShape


def tower_flops(config: OmniConfig, item: MediaItem) -> int:
    """FLOPs of encoding and projecting one item.

    Args:
        config: The model's config.
        item: The item; of its reduction only what happens inside the tower matters here.
    """
    source = TokenShape.full(item.modality, item.grid)
    steps = walk(config, item.modality, item.grid, "identity")
    entering = shape_after(steps, "frames", source)
    projected = shape_after(steps, "before_projector", source).num_tokens
    text = config.text_config
    if item.modality == "audio":
        audio = config.audio_config
        clips = clip_tokens(config, source.num_tokens)
        return sum(_audio_clip(audio, tokens) for tokens in clips) + _projector(
            projected, audio.hidden_size, audio.projection_hidden_size, text.hidden_size
        )
    sequences, height, width = entering.grid
    frames = config.tubelet_frames if item.modality == "video" else 1
    sequence = _vision_sequence(config.vision_config, height * width, frames, merging_rate(item))
    return sequences * sequence + _projector(
        projected, config.projector_input_size, config.projector_hidden_size, text.hidden_size
    )


def clip_tokens(config: OmniConfig, num_tokens: int) -> list[int]:
    """Tokens of each 30 s clip of a recording; attention does not cross clips."""
    full = ceil(CLIP_SAMPLES // HOP_LENGTH / config.audio_config.subsampling_factor)
    rest = num_tokens % full
    return [full] * (num_tokens // full) + [rest] * (rest > 0)


def prefill_flops(config: OmniConfig, num_tokens: int, *, past: int = 0) -> int:
    """FLOPs of the decoder over a prompt, with scores for its last position only.

    Attention counts the pairs of a query and a key that it may see, L (L + 1) / 2 without a past. A
    decoder that is not ours is counted as attention and a gated MLP in each layer.

    Args:
        config: The model's config.
        num_tokens: Prompt tokens that are read, at least 1.
        past: Tokens before them that a cache holds.
    """
    text = config.text_config
    layers = list(getattr(text, "layer_types", None) or [])
    head = 2 * text.hidden_size * text.vocab_size
    if text.model_type != "nemotron_h":
        gated_mlp = 3 * 2 * text.hidden_size * text.intermediate_size * num_tokens
        return text.num_hidden_layers * (_attention(text, num_tokens, past) + gated_mlp) + head
    per_layer = {
        "linear_attention": _mamba(text, num_tokens, past),
        "full_attention": _attention(text, num_tokens, past),
        "moe": _experts(text) * num_tokens,
        "mlp": _mlp(text.hidden_size, text.intermediate_size) * num_tokens,
    }
    return sum(per_layer[kind] for kind in layers) + head


def _mlp(width: int, hidden: int) -> int:
    """Up and down, without a gate, for one position."""
    return 2 * 2 * width * hidden


def _projector(tokens: int, size: int, hidden: int, out: int) -> int:
    return 2 * tokens * (size * hidden + hidden * out)


def _vision_sequence(vision: Any, patches: int, frames: int, merging: float) -> int:
    """One image, or one tubelet of several frames: embed its patches, run the blocks."""
    D, d = vision.hidden_size, vision.hidden_size // vision.num_attention_heads
    F = int(D * vision.mlp_ratio)
    mlp = _mlp(D, F)
    if vision.use_swiglu_ffn:
        mlp = 3 * 2 * D * ((int(F * 2 / 3) + 7) // 8 * 8)
    total = 2 * patches * (3 * frames * vision.patch_size**2) * D
    prefix = vision.num_cls_tokens + vision.num_registers
    for leaving in merge_counts(patches, vision.num_hidden_layers, merging):
        L = patches + prefix
        total += L * 4 * 2 * D * D  # queries, keys, values, output
        total += 2 * 2 * L * L * D  # scores with the keys, then over the values
        # Merging compares every other patch with those between.
        total += 2 * (patches // 2) * -(-patches // 2) * d if leaving else 0
        patches -= leaving
        total += (patches + prefix) * mlp
    return total


def _audio_clip(audio: Any, tokens: int) -> int:
    """One clip: strided convolutions, then conformer blocks."""
    D, F, L = audio.hidden_size, audio.intermediate_size, tokens
    C, taps = audio.subsampling_conv_channels, audio.subsampling_conv_kernel_size**2
    length, bins = L * audio.subsampling_factor, audio.num_mel_bins
    stem = 0
    for layer in range(audio.subsampling_factor.bit_length() - 1):
        length, bins = ceil(length / 2), ceil(bins / 2)
        pointwise = 2 * C * C if layer else 0
        stem += length * bins * (2 * C * taps + pointwise)
    stem += 2 * L * C * (audio.num_mel_bins // audio.subsampling_factor) * D

    key_share = audio.num_key_value_heads / audio.num_attention_heads
    projections = 2 * L * D * D * (2 + 2 * key_share) + 2 * (2 * L - 1) * D * D
    scores = 2 * L * D * (L + (2 * L - 1) + L)  # with keys, with positions, over values
    convolution = 2 * L * D * (2 * D + audio.conv_kernel_size + D)
    block = 2 * L * _mlp(D, F) + projections + scores + convolution
    return stem + audio.num_hidden_layers * round(block)


def _attention(text: Any, L: int, past: int = 0) -> int:
    """Grouped-query attention of one layer over a sequence, behind ``past`` cached positions."""
    H = text.num_attention_heads
    K = getattr(text, "num_key_value_heads", None) or H
    d = getattr(text, "head_dim", None) or text.hidden_size // H
    projections = 2 * L * text.hidden_size * d * (2 * H + 2 * K)
    pairs = L * past + L * (L + 1) // 2
    return projections + 2 * 2 * pairs * H * d


def _mamba(text: Any, L: int, past: int = 0) -> int:
    """One Mamba-2 layer, its scan in chunks as `omni.backbone.ssd` runs it."""
    inner, heads = text.mamba_num_heads * text.mamba_head_dim, text.mamba_num_heads
    G, N = text.n_groups, text.ssm_state_size
    channels = inner + 2 * G * N
    projections = 2 * text.hidden_size * ((inner + channels + heads) + inner)
    convolution = 2 * channels * text.conv_kernel
    Q = ceil(L / max(ceil(L / MAX_CHUNK_SIZE), 1))
    # Inside a chunk B with C, then over the inputs; the state takes in a chunk and gives it out,
    # but for the first chunk of all, before which there is none.
    scan = 2 * (Q * G * N + Q * inner + inner * N)
    given = L if past else L - Q
    return L * (projections + convolution + scan) + given * 2 * inner * N


def _experts(text: Any) -> int:
    """Router, chosen experts and shared expert of one MoE layer, for one position."""
    D, latent = text.hidden_size, text.moe_latent_size
    width = latent or D
    router = 2 * D * text.n_routed_experts
    routed = text.num_experts_per_tok * _mlp(width, text.moe_intermediate_size)
    down_and_up = _mlp(D, latent) if latent else 0
    return router + routed + down_and_up + _mlp(D, text.moe_shared_expert_intermediate_size)
