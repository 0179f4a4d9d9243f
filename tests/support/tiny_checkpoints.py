"""Tiny configs (spec 13) and checkpoints in the layouts that the loader must read."""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from transformers.models.nemotron_h_omni.configuration_nemotron_h_omni import (
    NemotronH_Omni_Reasoning_V3_Config,
)
from transformers.models.nemotron_h_omni.modeling_nemotron_h_omni import (
    NemotronH_Omni_Reasoning_V3,
)

TINY_TEXT = {
    "vocab_size": 272,
    "hidden_size": 8,
    "hybrid_override_pattern": "ME*",
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "intermediate_size": 8,
    "mamba_num_heads": 2,
    "mamba_head_dim": 8,
    "n_groups": 1,
    "ssm_state_size": 4,
    "conv_kernel": 4,
    "chunk_size": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "moe_shared_expert_intermediate_size": 8,
    "routed_scaling_factor": 2.5,
    "eos_token_id": 11,
    "pad_token_id": 0,
}
TINY_VISION = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 2,
    "max_img_size": 16,
    "video_temporal_patch_size": 2,
}
TINY_AUDIO = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "num_mel_bins": 8,
    "subsampling_conv_channels": 2,
    "conv_kernel_size": 9,
    "subsampling_factor": 8,
    "projection_hidden_size": 8,
    "projection_bias": False,
    "convolution_bias": False,
}
TINY_TOP = {
    "vision_hidden_size": 8,
    "projector_hidden_size": 16,
    "image_token_id": 18,
    "video_token_id": 19,
    "audio_token_id": 27,
    "video_pruning_rate": 0.0,
}


def tiny_fields(**changes: Any) -> dict[str, Any]:
    """Config fields under transformers' names, as fresh dicts."""
    return {
        "text_config": dict(TINY_TEXT),
        "vision_config": dict(TINY_VISION),
        "audio_config": dict(TINY_AUDIO),
        **TINY_TOP,
        **changes,
    }


def released_fields() -> dict[str, Any]:
    """Write the tiny config the way the released file is written: legacy names, defects B1-B3."""
    text = {**TINY_TEXT, "model_type": "nemotron_h", "num_hidden_layers": 3}
    vision = {
        **{k: v for k, v in TINY_VISION.items() if k != "video_temporal_patch_size"},
        "model_type": "",
        "version": "radio_v2.5-h",
        "separate_video_embedder": True,
        "auto_map": {"AutoConfig": "nvidia/C-RADIOv2-H--hf_model.RADIOConfig"},
        "args": {"min_num_patches": 16, "max_num_patches": 64},
        "video_target_num_patches": 16,
    }
    return {
        "architectures": ["NemotronH_Nano_Omni_Reasoning_V3"],
        "model_type": "NemotronH_Nano_Omni_Reasoning_V3",
        "auto_map": {"AutoConfig": "configuration.NemotronH_Nano_Omni_Reasoning_V3_Config"},
        "torch_dtype": "bfloat16",
        "llm_config": text,
        "vision_config": vision,
        "sound_config": {**TINY_AUDIO, "model_type": "parakeet", "sampling_rate": 16000},
        "vit_hidden_size": 8,
        "projector_hidden_size": 16,
        "downsample_ratio": 0.5,
        "ps_version": "v2",
        "patch_size": 2,
        "force_image_size": 512,
        "image_tag_type": "internvl",
        "template": "chatml",
        "use_thumbnail": True,
        "max_sequence_length": 131072,
        "img_context_token": "<image>",
        "img_context_token_id": 18,
        "img_start_token": "<img>",
        "img_end_token": "</img>",
        "video_context_token_id": 131081,
        "sound_context_token": "<so_embedding>",
        "sound_context_token_id": 27,
        "video_temporal_patch_size": 2,
        "video_pruning_rate": 0.7,
        "norm_mean": [0.48145466, 0.4578275, 0.40821073],
        "norm_std": [0.26862954, 0.26130258, 0.27577711],
    }


def tiny_model(seed: int = 0, **changes: Any) -> NemotronH_Omni_Reasoning_V3:
    """Transformers' own model with the tiny config and weights that all differ."""
    torch.manual_seed(seed)
    model = NemotronH_Omni_Reasoning_V3(
        NemotronH_Omni_Reasoning_V3_Config(**tiny_fields(**changes))
    )
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and "layer_scale" not in name:
                tensor.copy_(torch.randn_like(tensor))
            elif name.endswith("num_batches_tracked"):
                tensor.fill_(12345)
    return model.eval()


def empty_model(config: Any) -> NemotronH_Omni_Reasoning_V3:
    """Transformers' own model for a config of ours, without memory for its weights."""
    fields = config.to_dict()
    for name in ("text_config", "vision_config", "audio_config"):
        fields[name] = getattr(config, name)
    known = NemotronH_Omni_Reasoning_V3_Config.__dataclass_fields__
    with init_empty_weights(include_buffers=False):
        return NemotronH_Omni_Reasoning_V3(
            NemotronH_Omni_Reasoning_V3_Config(**{k: v for k, v in fields.items() if k in known})
        )


def write_released(
    directory: Path, model: NemotronH_Omni_Reasoning_V3, num_shards: int = 3
) -> Path:
    """Write a model as NVIDIA does: per-expert, bfloat16, sharded, with unused constants.

    Independent of the code under test: it starts from transformers' own save.
    """
    plain = directory / "plain"
    model.save_pretrained(plain)
    tensors = load_file(plain / "model.safetensors")
    kept_float32 = ("e_score_correction_bias",)
    tensors = {
        name: t.bfloat16() if t.is_floating_point() and not name.endswith(kept_float32) else t
        for name, t in tensors.items()
        if "layer_scale" not in name and not name.endswith("summary_idxs")
    }
    tensors["vision_model.radio_model.input_conditioner.norm_mean"] = torch.zeros(3, 1, 1)
    tensors["vision_model.radio_model.input_conditioner.norm_std"] = torch.ones(3, 1, 1)
    featurizer = "sound_encoder.encoder.feature_extractor.featurizer"
    tensors[f"{featurizer}.fb"] = torch.zeros(1, 8, 257)
    tensors[f"{featurizer}.window"] = torch.zeros(400)

    released = directory / "released"
    released.mkdir()
    weight_map = {}
    for shard in range(num_shards):
        names = sorted(tensors)[shard::num_shards]
        file = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        save_file({name: tensors[name] for name in names}, released / file)
        weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (released / "model.safetensors.index.json").write_text(json.dumps(index))
    (released / "config.json").write_text(json.dumps(released_fields()))
    return released
