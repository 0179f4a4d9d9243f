"""Tiny hybrid decoders with random weights large enough that every layer matters."""

import torch
from torch import nn
from transformers import NemotronHConfig

from omni.backbone import HybridForCausalLM

TINY = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 24,
    "mamba_num_heads": 4,
    "mamba_head_dim": 8,
    "n_groups": 2,
    "ssm_state_size": 8,
    "conv_kernel": 4,
    "chunk_size": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "moe_shared_expert_intermediate_size": 20,
    "routed_scaling_factor": 2.5,
}


def tiny_config(pattern: str = "ME*-", **fields: object) -> NemotronHConfig:
    """Build a new config; one is never shared, since transformers writes into it."""
    return NemotronHConfig(**(TINY | fields), hybrid_override_pattern=pattern)


def randomise(model: nn.Module, std: float = 0.3) -> None:
    """Give every parameter and buffer a value that a wrong formula would not survive.

    `A_log` keeps its initial decay rates; norms and `D` are near one.
    """
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if not name.endswith("A_log"):
                tensor.normal_(0, std)
            if "norm" in name or name.endswith(".D"):
                tensor.add_(1)


def tiny_model(pattern: str = "ME*-", **fields: object) -> HybridForCausalLM:
    """Build a tiny decoder in eval mode."""
    torch.manual_seed(0)
    model = HybridForCausalLM(tiny_config(pattern, **fields)).eval()
    randomise(model)
    return model
