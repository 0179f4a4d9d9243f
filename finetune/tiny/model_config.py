"""The sizes of `omni-tiny`: one config and one set of processor settings, and the whole model.

Every part of the released architecture is there, smaller: C-RADIO tower with a tubelet embedder,
Parakeet tower, pixel shuffle, and a hybrid decoder of Mamba-2, attention and experts.
"""

from pathlib import Path

from safetensors.torch import load_file
from transformers import NemotronHConfig

from finetune.tiny.audio_pool import NORMALIZE
from finetune.tiny.audio_tower import build_tower_config
from finetune.tiny.tokenizer import SPECIAL_TOKENS
from finetune.tiny.vision_data import FRAME_PATCHES, MAX_PATCHES, MIN_PATCHES
from finetune.tiny.vision_tower import tower_config
from omni.config import OmniConfig
from omni.model import OmniModel
from omni.settings import ProcessorSettings

# M Mamba-2, E experts, * attention. Attention comes after a Mamba layer, which tells it how far an
# answer has got, and experts come last, where what was looked up is turned into a token. The last
# round of both was added to weights that had been trained without it (`finetune.tiny.grow`).
PATTERN = "MEM*EM*E*E"
KEY_VALUE_HEADS = 4

_IDS = {token: i for i, token in SPECIAL_TOKENS.items()}


def text_config(
    vocab_size: int, pattern: str = PATTERN, key_value_heads: int = KEY_VALUE_HEADS
) -> NemotronHConfig:
    """Return the configuration of the decoder.

    Args:
        vocab_size: Tokens of the tokenizer.
        pattern: Kinds of its layers.
        key_value_heads: Heads of keys and values, for four of queries.
    """
    return NemotronHConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        hybrid_override_pattern=pattern,
        num_attention_heads=4,
        num_key_value_heads=key_value_heads,
        head_dim=64,
        mamba_num_heads=8,
        mamba_head_dim=64,
        ssm_state_size=64,
        n_groups=1,
        conv_kernel=4,
        chunk_size=64,
        n_routed_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=192,
        moe_shared_expert_intermediate_size=384,
        routed_scaling_factor=1.0,
        initializer_range=256**-0.5,
        max_position_embeddings=65_536,
        bos_token_id=_IDS["<s>"],
        eos_token_id=_IDS["<|im_end|>"],
        pad_token_id=_IDS["<unk>"],
    )


def model_config(vocab_size: int) -> OmniConfig:
    """Return the configuration of the whole model.

    Args:
        vocab_size: Tokens of the tokenizer.
    """
    audio = build_tower_config()
    audio.projection_hidden_size = 256
    audio.projection_bias = False
    return OmniConfig(
        text_config=text_config(vocab_size),
        vision_config=tower_config(),
        audio_config=audio,
        audio_normalize=NORMALIZE,
        projector_hidden_size=512,
        min_num_patches=MIN_PATCHES,
        max_num_patches=MAX_PATCHES,
        video_target_num_patches=FRAME_PATCHES,
        video_token_id=_IDS["<image>"],
        image_token_id=_IDS["<image>"],
        audio_token_id=_IDS["<so_embedding>"],
        img_start_token_id=_IDS["<img>"],
        img_end_token_id=_IDS["</img>"],
        audio_start_token_id=_IDS["<so_start>"],
        audio_end_token_id=_IDS["<so_end>"],
    )


def processor_settings() -> ProcessorSettings:
    """Return how media are sampled: an hour of speech (45,000 tokens) fits the context."""
    return ProcessorSettings(fps=4.0, num_frames=32, document_dpi=144, max_model_len=65_536)


def build_model(vocab_size: int) -> OmniModel:
    """Build the model with a fresh decoder and fresh projectors; the towers await their weights.

    Args:
        vocab_size: Tokens of the tokenizer.
    """
    return OmniModel(model_config(vocab_size)).eval()


def load_towers(model: OmniModel, vision: Path, audio: Path) -> None:
    """Load the towers that stage 1 trained, and freeze them.

    Args:
        model: From `build_model`.
        vision: Weights from `finetune.tiny.train_vision`.
        audio: Weights from `finetune.tiny.train_audio`.
    """
    for tower, path in ((model.vision_model, vision), (model.audio_tower, audio)):
        assert tower is not None
        tower.load_state_dict(load_file(path))
        tower.requires_grad_(False).eval()
