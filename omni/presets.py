"""Configs of published models, by name.

Each preset is a function that returns a fresh config; nothing is downloaded. Parameter
counts are those of the model built from the preset, without the layer of multi-token
prediction (pattern `*E`) that Super and Ultra publish beside the decoder.

    preset              parameters        published as
    nano-omni-30b-a3b   33,015,628,736    Nemotron-3-Nano-Omni-30B-A3B-Reasoning
    nano-30b-a3b        31,577,937,344    NVIDIA-Nemotron-3-Nano-30B-A3B
    super-120b-a12b     120,668,687,360   NVIDIA-Nemotron-3-Super-120B-A12B
    ultra-550b-a55b     549,308,968,960   NVIDIA-Nemotron-3-Ultra-550B-A55B
    nano-9b-v2          8,888,227,328     NVIDIA-Nemotron-Nano-9B-v2
    nano-12b-v2-vl      12,310,001,152    the decoder of NVIDIA-Nemotron-Nano-12B-v2-VL

Of the omni model, 81,920 are identity layer scales that its checkpoint does not store.
"""

import difflib
from collections.abc import Callable
from typing import Any

from transformers import NemotronHConfig, PreTrainedConfig

from omni.config import OmniConfig
from omni.errors import ConfigError

NANO_PATTERN = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
SUPER_PATTERN = (
    "MEMEMEM*EMEMEMEM*EMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEM*EMEMEMEME"
)
ULTRA_PATTERN = (
    "MEMEMEM*EMEMEM*EMEMEMEM*EMEMEMEM*EMEMEM*EMEMEMEM*EMEMEMEM*EMEMEM*EMEMEMEM*EMEMEMEM*EMEMEM*"
    "EMEMEMEM*EMEMEMEME"
)
NANO_9B_PATTERN = "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-"
NANO_12B_PATTERN = "M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M-"


def nano_omni_30b_a3b() -> OmniConfig:
    """Nemotron 3 Nano Omni: hears, sees and reads.

    Source: the released config as far as it is public, completed by the defaults of
    transformers' class; all sizes are confirmed by the published parameter count. Not
    public and left at these defaults: whether video frames keep their aspect (here: yes),
    and the dropout rates of the audio tower, which matter in training only.
    """
    return OmniConfig(
        text_config=nano_30b_a3b(),
        vision_config={
            "hidden_size": 1280,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "patch_size": 16,
            "max_img_size": 2048,
            "num_cls_tokens": 3,
            "num_registers": 7,
            "video_temporal_patch_size": 2,
        },
        audio_config={
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 8,
            "intermediate_size": 4096,
            "num_mel_bins": 128,
            "subsampling_factor": 8,
            "subsampling_conv_channels": 256,
            "conv_kernel_size": 9,
            "convolution_bias": False,
            "projection_hidden_size": 4096,
        },
        projector_hidden_size=20480,
        video_pruning_rate=0.7,
    )


def nano_30b_a3b() -> NemotronHConfig:
    """Nemotron 3 Nano, 52 layers, 3.6 B of 31.6 B parameters active for a token.

    Source: the published config; confirmed by the published parameter count.
    """
    return _decoder(
        hidden_size=2688,
        hybrid_override_pattern=NANO_PATTERN,
        num_attention_heads=32,
        num_key_value_heads=2,
        intermediate_size=1856,
        mamba_num_heads=64,
        mamba_head_dim=64,
        n_routed_experts=128,
        num_experts_per_tok=6,
        moe_intermediate_size=1856,
        moe_shared_expert_intermediate_size=3712,
        routed_scaling_factor=2.5,
        max_position_embeddings=262144,
    )


def super_120b_a12b() -> NemotronHConfig:
    """Nemotron 3 Super, 88 layers, 12.8 B of 120.7 B parameters active for a token.

    Source: NVIDIA's Megatron-Bridge provider, which agrees with several public copies of
    the config. The exact parameter count was not found; this one fits the name.
    """
    return _decoder(
        hidden_size=4096,
        hybrid_override_pattern=SUPER_PATTERN,
        num_attention_heads=32,
        num_key_value_heads=2,
        intermediate_size=2688,
        mamba_num_heads=128,
        mamba_head_dim=64,
        n_routed_experts=512,
        num_experts_per_tok=22,
        moe_intermediate_size=2688,
        moe_shared_expert_intermediate_size=5376,
        moe_latent_size=1024,
        routed_scaling_factor=5.0,
        max_position_embeddings=262144,
    )


def ultra_550b_a55b() -> NemotronHConfig:
    """Nemotron 3 Ultra, 108 layers, 56 B of 549 B parameters active for a token.

    Source: NVIDIA's published training scripts (pattern, widths, experts, latent size) and
    a public transcription of its config. The Mamba state size 128 is that of its siblings
    and of Megatron's default, and the context of 262,144 is that of Super's config: neither
    was found for Ultra itself. The exact parameter count was not found; this one fits the
    name.
    """
    return _decoder(
        hidden_size=8192,
        hybrid_override_pattern=ULTRA_PATTERN,
        num_attention_heads=64,
        num_key_value_heads=2,
        intermediate_size=5120,
        mamba_num_heads=256,
        mamba_head_dim=64,
        n_routed_experts=512,
        num_experts_per_tok=22,
        moe_intermediate_size=5120,
        moe_shared_expert_intermediate_size=10240,
        moe_latent_size=2048,
        routed_scaling_factor=5.0,
        max_position_embeddings=262144,
    )


def nano_9b_v2() -> NemotronHConfig:
    """Nemotron Nano 9B v2, 56 layers, dense.

    Source: NVIDIA's Megatron-Bridge provider; confirmed by the published parameter count.
    """
    return _decoder(
        hidden_size=4480,
        hybrid_override_pattern=NANO_9B_PATTERN,
        num_attention_heads=40,
        num_key_value_heads=8,
        intermediate_size=15680,
        mamba_num_heads=128,
        mamba_head_dim=80,
        max_position_embeddings=131072,
    )


def nano_12b_v2_vl() -> NemotronHConfig:
    """The decoder of Nemotron Nano 12B v2 VL, 62 layers, dense.

    Source: NVIDIA's Megatron-Bridge provider. The exact parameter count was not found; this
    one fits the name.
    """
    return _decoder(
        hidden_size=5120,
        hybrid_override_pattern=NANO_12B_PATTERN,
        num_attention_heads=40,
        num_key_value_heads=8,
        intermediate_size=20480,
        mamba_num_heads=128,
        mamba_head_dim=80,
        max_position_embeddings=131072,
    )


def _decoder(**sizes: Any) -> NemotronHConfig:
    """Build a config with what the whole family has in common."""
    return NemotronHConfig(
        vocab_size=131072,
        head_dim=128,
        n_groups=8,
        ssm_state_size=128,
        conv_kernel=4,
        chunk_size=128,
        layer_norm_epsilon=1e-5,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        dtype="bfloat16",
        **sizes,
    )


PRESETS: dict[str, Callable[[], PreTrainedConfig]] = {
    "nano-omni-30b-a3b": nano_omni_30b_a3b,
    "nano-30b-a3b": nano_30b_a3b,
    "super-120b-a12b": super_120b_a12b,
    "ultra-550b-a55b": ultra_550b_a55b,
    "nano-9b-v2": nano_9b_v2,
    "nano-12b-v2-vl": nano_12b_v2_vl,
}


def get(name: str) -> PreTrainedConfig:
    """Return a fresh config by its preset name.

    Args:
        name: A key of `PRESETS`.

    Returns:
        An `OmniConfig` for omni models, a `NemotronHConfig` for decoders alone.

    Raises:
        ConfigError: There is no such preset.
    """
    if name not in PRESETS:
        nearest = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"no preset {name!r}; the nearest is {nearest!r}. Known: {', '.join(PRESETS)}."
        )
    return PRESETS[name]()
