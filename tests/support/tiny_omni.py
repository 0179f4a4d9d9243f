"""A random omni model small enough for tests, with a byte tokenizer and its processor."""

from functools import cache
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.nemotron_h_omni.configuration_nemotron_h_omni import (
    NemotronH_Omni_Reasoning_V3_Config,
)
from transformers.models.nemotron_h_omni.modeling_nemotron_h_omni import (
    NemotronH_Omni_Reasoning_V3,
)

from omni.assistant import Assistant
from omni.config import OmniConfig
from omni.model import OmniModel
from omni.processor import OmniProcessor
from omni.settings import ProcessorSettings

SPECIAL_TOKENS = {
    0: "<unk>",
    1: "<s>",
    2: "</s>",
    10: "<|im_start|>",
    11: "<|im_end|>",
    12: "<think>",
    13: "</think>",
    14: "<tool_call>",
    15: "</tool_call>",
    16: "<tool_response>",
    17: "</tool_response>",
    18: "<image>",
    21: "<img>",
    22: "</img>",
    27: "<so_embedding>",
    28: "<so_start>",
    29: "<so_end>",
}
NUM_SPECIAL = 30
VOCAB_SIZE = NUM_SPECIAL + 256

TEXT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "hybrid_override_pattern": "ME*-M",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 32,
    "mamba_num_heads": 4,
    "mamba_head_dim": 8,
    "n_groups": 2,
    "ssm_state_size": 8,
    "conv_kernel": 4,
    "chunk_size": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16,
    "routed_scaling_factor": 2.5,
    "eos_token_id": 11,
    "pad_token_id": 0,
}
VISION = {
    "model_type": "radio",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 4,
    "max_img_size": 32,
    "video_temporal_patch_size": 2,
}
AUDIO = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_mel_bins": 8,
    "subsampling_conv_channels": 4,
    "conv_kernel_size": 9,
    "subsampling_factor": 8,
    "projection_hidden_size": 16,
    "projection_bias": False,
    "convolution_bias": False,
}
TOP = {
    "vision_hidden_size": 32,
    "projector_hidden_size": 32,
    "image_token_id": 18,
    "video_token_id": 19,
    "audio_token_id": 27,
    "video_pruning_rate": 0.0,
}
GRIDS = {"min_num_patches": 16, "max_num_patches": 64, "video_target_num_patches": 24}


def omni_config(**changes: Any) -> OmniConfig:
    """Our config of the tiny model."""
    fields = {
        "text_config": dict(TEXT),
        "vision_config": dict(VISION),
        "audio_config": dict(AUDIO),
        **TOP,
        **GRIDS,
        **changes,
    }
    return OmniConfig(**fields)


def omni_model(seed: int = 0, **changes: Any) -> OmniModel:
    """Our model with random weights, in eval mode."""
    torch.manual_seed(seed)
    return OmniModel(omni_config(**changes)).eval()


def reference_model(model: OmniModel, **changes: Any) -> NemotronH_Omni_Reasoning_V3:
    """transformers' model with the weights of ours."""
    config = NemotronH_Omni_Reasoning_V3_Config(
        text_config=dict(TEXT),
        vision_config=dict(VISION),
        audio_config=dict(AUDIO),
        **{**TOP, **changes},
    )
    reference = NemotronH_Omni_Reasoning_V3(config).eval()
    reference.load_state_dict(model.state_dict())
    return reference


@cache
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, without merges, special tokens at the released ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {f"<reserved_{i}>": i for i in range(NUM_SPECIAL)}
    vocab = {token: i for token, i in vocab.items() if i not in SPECIAL_TOKENS}
    vocab |= {token: i for i, token in SPECIAL_TOKENS.items()}
    vocab |= {char: NUM_SPECIAL + i for i, char in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL_TOKENS.values()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<unk>", unk_token="<unk>"
    )


def omni_processor(config: OmniConfig | None = None, **settings: Any) -> OmniProcessor:
    """A processor over the byte tokenizer."""
    defaults = {"fps": 4.0, "num_frames": 16, "max_model_len": 4096}
    chosen = ProcessorSettings(**{**defaults, **settings})
    return OmniProcessor(byte_tokenizer(), config or omni_config(), chosen)


def assistant(seed: int = 0, **changes: Any) -> Assistant:
    """Model and processor together."""
    model = omni_model(seed, **changes)
    return Assistant(model, omni_processor(model.config), name="random")


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth random colours, uint8 (H, W, 3)."""
    values = np.random.default_rng(seed).uniform(0, 255, (height // 8 + 1, width // 8 + 1, 3))
    return np.kron(values, np.ones((8, 8, 1)))[:height, :width].astype(np.uint8)


def clip(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture that moves to the right, uint8 (F, H, W, 3)."""
    still = picture(height, width, seed)
    return np.stack([np.roll(still, 3 * i, axis=1) for i in range(frames)])


def tone(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise over a tone, float32 at 16 kHz."""
    count = round(seconds * 16_000)
    noise = np.random.default_rng(seed).normal(0, 0.05, count)
    wave = 0.3 * np.sin(2 * np.pi * (200 + 50 * seed) * np.arange(count) / 16_000)
    return (wave + noise).astype(np.float32)
