"""Working memory of a request, estimated from configs and counts alone.

    kv_cache      keys and values of prompt and answer: exact
    mamba_state   recurrent states and convolution windows: exact
    embeddings    what stands for the media on their way to the decoder, and the prompt's embeddings
    activations   the largest of: preparing one picture or clip, one tower pass, one prefill chunk
    overhead      freed blocks that the allocator keeps, buffers of libraries: the same for all

Not in it: the weights and the media as they were opened. The estimate counts the tensors that are
alive at once where a pass is widest, some of them twice, and is meant to be above what is measured
(`benchmarks/working_memory.py`), so that a request within a memory budget stays within it.
"""

# Letters
#   D = width, F = hidden width of an MLP, v = values of a patch row, b = bytes of a number

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omni.backbone.attention import MAX_CPU_MASK_SIZE, MAX_MASK_SIZE
from omni.backbone.shared_keys import MAX_SCORES, MIN_SCORES
from omni.backbone.ssd import MAX_CHUNK_SIZE
from omni.config import OmniConfig
from omni.encoding import MAX_ROWS_PER_CPU_PASS, MAX_ROWS_PER_PASS
from omni.inputs import MediaItem, Modality
from omni.memory import PREFILL_CHUNK
from omni.steps import shape_after, walk
from token_reduction import TokenShape

FLOAT32 = 4  # bytes; pixels, spectrograms, scans and scores are in float32 whatever the model is
LAYOUT_BYTES = 160  # of provenance for each source cell, while layouts are merged
# Beyond its tensors a process grew by up to 42 MiB (measured on a CPU, `omni-tiny`).
OVERHEAD_BYTES = 64 * 2**20
SPECTRUM_BYTES = 8_192  # of a mel frame on its way: 512 samples, their spectrum, its power


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes of each part; see the module."""

    kv_cache_bytes: int
    mamba_state_bytes: int
    embedding_bytes: int
    activation_bytes: int
    overhead_bytes: int = OVERHEAD_BYTES

    @property
    def total_bytes(self) -> int:
        """All parts together, as if they were alive at the same time."""
        return (
            self.kv_cache_bytes
            + self.mamba_state_bytes
            + self.embedding_bytes
            + self.activation_bytes
            + self.overhead_bytes
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What an estimate must know of the model that will run.

    Attributes:
        bytes_per_value: Width of its number format; float32 unless told otherwise.
        on_cpu: Whether the towers run on a CPU, where their passes are smaller.
    """

    bytes_per_value: int = FLOAT32
    on_cpu: bool = True

    @classmethod
    def of(cls, model: Any) -> "Runtime":
        """Of a loaded ``OmniModel``."""
        return cls(bytes_per_value=model.dtype.itemsize, on_cpu=model.device.type == "cpu")


def footprint(
    config: OmniConfig,
    items: Sequence[MediaItem],
    *,
    prompt_tokens: int,
    answer_tokens: int,
    runtime: Runtime,
    training: bool = False,
    past: int = 0,
) -> Footprint:
    """Estimate the working memory of one request.

    Args:
        config: The model's config.
        items: Its media.
        prompt_tokens: Length of the prompt.
        answer_tokens: Room for the answer.
        runtime: How the model is loaded.
        training: Count one training sample instead: no caches, but the activations of all decoder
            layers and their gradients; towers frozen, no gradients of weights, no optimiser.
        past: Tokens of the prompt that a cache holds already; their media are not among ``items``.
    """
    b, width = runtime.bytes_per_value, config.text_config.hidden_size
    caches = cache_bytes(config, prompt_tokens + answer_tokens, b)
    decoder = decoder_bytes(config.text_config, prompt_tokens, runtime, past=past)
    if training:
        caches = (0, 0)
        decoder = training_bytes(config.text_config, prompt_tokens, b)
    kinds: tuple[Modality, ...] = ("image", "video", "audio")
    towers = [_pass_bytes(config, items, kind, runtime) for kind in kinds]
    prepared = [_prepare_bytes(config, item) for item in items]
    held = sum(_held_bytes(config, item, b) for item in items)
    return Footprint(
        kv_cache_bytes=caches[0],
        mamba_state_bytes=caches[1],
        embedding_bytes=held + 2 * (prompt_tokens - past) * width * b,
        activation_bytes=max(*towers, *prepared, decoder),
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
    positions = attention * num_tokens
    # A step reads a whole window; between two steps transformers keeps a position less of it.
    window_tokens = getattr(text, "sliding_window", None) or num_tokens
    positions += kinds.count("sliding_attention") * min(num_tokens, window_tokens)
    kv = positions * 2 * heads * head_dim * bytes_per_value
    recurrent = kinds.count("linear_attention")
    if not recurrent:
        return kv, 0
    if text.model_type != "nemotron_h":
        return kv, recurrent * _delta_state_bytes(text, bytes_per_value)
    inner = text.mamba_num_heads * text.mamba_head_dim
    channels = inner + 2 * text.n_groups * text.ssm_state_size
    state = inner * text.ssm_state_size * FLOAT32
    window = channels * (text.conv_kernel - 1) * bytes_per_value
    return kv, recurrent * (state + window)


def _delta_state_bytes(text: Any, bytes_per_value: int) -> int:
    """State of a gated delta rule layer (Qwen3-Next): a matrix a head, and a convolution's past."""
    keys = text.linear_num_key_heads * text.linear_key_head_dim
    values = text.linear_num_value_heads * text.linear_value_head_dim
    past = (2 * keys + values) * text.linear_conv_kernel_dim * bytes_per_value
    return int(values * text.linear_key_head_dim * FLOAT32 + past)


def decoder_bytes(text: Any, num_tokens: int, runtime: Runtime, *, past: int = 0) -> int:
    """The widest layer of the decoder over one chunk of a prompt, and the scores at its end.

    Args:
        text: The decoder's config.
        num_tokens: Prompt tokens: a chunk is not longer, and attention's mask is as wide.
        runtime: How the model is loaded.
        past: Tokens of the prompt that were read before.
    """
    b, chunk = runtime.bytes_per_value, min(num_tokens - past, PREFILL_CHUNK)
    entries = min(chunk * num_tokens, MAX_CPU_MASK_SIZE if runtime.on_cpu else MAX_MASK_SIZE)
    # Of the first chunk attention is plain causal; later ones have a mask, as booleans and floats.
    mask = (1 + FLOAT32) * entries if num_tokens > chunk else 0
    is_long = runtime.on_cpu and chunk * num_tokens >= MIN_SCORES
    scores = 2 * FLOAT32 * MAX_SCORES if is_long else 0  # of some queries, and their softmax
    widest = max(_layer_bytes(text, kind, chunk, b) for kind in set(_kinds(text)))
    return widest + max(mask, scores) + text.vocab_size * (b + FLOAT32)


def training_bytes(text: Any, num_tokens: int, b: int, *, recompute: bool = False) -> int:
    """All layers of the decoder over one sample, with the gradients of what they keep.

    Args:
        text: The decoder's config.
        num_tokens: Tokens of the sample.
        b: Bytes of a number.
        recompute: Layers keep their input only and run again in the backward pass, one at a time.
    """
    kinds = Counter(_kinds(text))
    layers = sum(n * _layer_bytes(text, kind, num_tokens, b) for kind, n in kinds.items())
    if recompute:
        inputs = kinds.total() * num_tokens * text.hidden_size * b
        layers = inputs + max(_layer_bytes(text, kind, num_tokens, b) for kind in kinds)
    scores = num_tokens * text.vocab_size * (b + 2 * FLOAT32)
    return 2 * layers + scores


def _kinds(text: Any) -> list[str]:
    if text.model_type != "nemotron_h":
        return ["gated"] * text.num_hidden_layers
    return list(text.layer_types)


def _layer_bytes(text: Any, kind: str, tokens: int, b: int) -> int:
    """What is alive in one layer where it is widest, its input and the normed input included."""
    D = text.hidden_size
    if kind == "linear_attention":
        inner = text.mamba_num_heads * text.mamba_head_dim
        N, grouped = text.ssm_state_size, text.n_groups * text.ssm_state_size
        channels = inner + 2 * grouped
        Q = max(min(tokens, MAX_CHUNK_SIZE), 1)
        per_group = text.n_groups * Q  # a number for each pair of positions of a chunk
        inside = 3 * per_group + 2 * inner
        between = per_group + 3 * inner + 3 * inner * N // Q
        scan = channels + inner + 2 * grouped + max(inside, between)
        values, floats = inner + channels + text.mamba_num_heads, scan
    elif kind == "moe":
        width, chosen = text.moe_latent_size or D, text.num_experts_per_tok
        routed = 3 * chosen * width + 2 * text.moe_intermediate_size
        shared = 2 * text.moe_shared_expert_intermediate_size
        values = max(routed, width + shared)
        floats = D + 3 * text.n_routed_experts + (chosen + 1) * width
    elif kind == "full_attention":
        heads = 2 * text.num_attention_heads + 4 * text.num_key_value_heads
        values, floats = heads * text.head_dim, 0
    elif kind == "mlp":
        values, floats = 3 * text.intermediate_size, 0
    else:  # a layer of another decoder: attention, then a gated MLP
        values, floats = 4 * D + 3 * text.intermediate_size, 0
    return tokens * (b * (2 * D + values) + FLOAT32 * (D + floats))


def _held_bytes(config: OmniConfig, item: MediaItem, b: int) -> int:
    """What of an item is kept until the prompt is put together: its tokens, and their layout."""
    source = TokenShape.full(item.modality, item.grid)
    steps = walk(config, item.modality, item.grid, "identity")
    projected = shape_after(steps, "before_projector", source).num_tokens
    # Projected tokens, the same joined to one tensor, those that are kept, and these joined.
    tokens = 2 * (projected + item.num_tokens) * config.text_config.hidden_size * b
    tiled = item.modality == "image" and not config.dynamic_resolution
    rows = 2 * source.num_tokens * _row_values(config) * FLOAT32 if tiled else 0
    return tokens + rows + LAYOUT_BYTES * source.num_tokens


def _row_values(config: OmniConfig) -> int:
    """Values of the patch row of one frame."""
    return int(3 * config.vision_config.patch_size**2)


def _pass_bytes(
    config: OmniConfig, items: Sequence[MediaItem], kind: Modality, runtime: Runtime
) -> int:
    """The widest tower pass over media of one kind, with its input and the next window."""
    own = [item for item in items if item.modality == kind]
    if not own:
        return 0
    window = max(item.window_rows for item in own)
    factor = config.audio_config.subsampling_factor if kind == "audio" else 1
    total = sum(math.prod(item.grid) for item in own) * factor
    most = MAX_ROWS_PER_CPU_PASS if runtime.on_cpu else MAX_ROWS_PER_PASS
    rows = min(total, max(window, most))
    if kind == "audio":
        return _audio_pass_bytes(config, rows, window, runtime.bytes_per_value)
    frames = config.tubelet_frames if kind == "video" else 1
    return _vision_pass_bytes(config, rows, window, frames, runtime.bytes_per_value)


def _vision_pass_bytes(config: OmniConfig, rows: int, window: int, frames: int, b: int) -> int:
    """Rows as they came and as the embedder takes them, and the widest of block and projector."""
    vision, v = config.vision_config, _row_values(config)
    came = (rows + window) * v * FLOAT32
    copies = (6 if frames > 1 else 5) * rows * v * b
    kept = (3 if frames > 1 else 2) * rows * v * b
    patches = -(-rows // frames)
    D, F = vision.hidden_size, int(vision.hidden_size * vision.mlp_ratio)
    block = patches * (3 * D + max(2 * F, 4 * D))
    tokens = patches // config.merge_size**2
    hidden, out = config.projector_hidden_size, config.text_config.hidden_size
    projector = patches * D + tokens * (2 * config.projector_input_size + 2 * hidden + out)
    return came + max(copies, kept + max(block, projector) * b)


def _audio_pass_bytes(config: OmniConfig, rows: int, window: int, b: int) -> int:
    """Spectrograms, and the widest of convolutions, conformer block and projector."""
    audio = config.audio_config
    came = (2 * rows + window) * audio.num_mel_bins * FLOAT32 + rows * audio.num_mel_bins * b
    stem = 2 * audio.subsampling_conv_channels * (rows // 2 + 1) * (audio.num_mel_bins // 2 + 1)
    tokens = -(-rows // audio.subsampling_factor)
    clip = min(tokens, -(-window // audio.subsampling_factor))
    D, F = audio.hidden_size, audio.intermediate_size
    scores = 5 * audio.num_attention_heads * tokens * clip
    positions = 8 * tokens * D
    block = tokens * (3 * D + max(2 * F, 8 * D)) + scores + positions
    hidden, out = audio.projection_hidden_size, config.text_config.hidden_size
    projector = tokens * (2 * D + 2 * hidden + out)
    return came + max(stem, block, projector) * b


def _prepare_bytes(config: OmniConfig, item: MediaItem) -> int:
    """Making one window: a resized picture or frame, or the spectrogram of a clip."""
    if item.modality == "audio":
        return item.window_rows * SPECTRUM_BYTES
    height, width = item.facts.get("height", 0), item.facts.get("width", 0)
    grid_height, grid_width = item.grid[1:]
    resized = grid_height * grid_width * _row_values(config)
    halfway = 3 * height * grid_width * config.vision_config.patch_size
    source = 3 * height * width
    made = 2 * item.window_rows * _row_values(config) if item.modality == "video" else 0
    return FLOAT32 * (source + halfway + 5 * resized + made) + 3 * source
