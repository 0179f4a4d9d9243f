"""The same random weights in llama.cpp, for `against_llama_cpp.py`: a GGUF file and timed works.

Needs `llama-cpp-python` and `gguf`; neither is among the toolkit's requirements. The names and the
layout of the tensors are those of llama.cpp's `nemotron_h_moe` (`src/models/nemotron-h.cpp`), whose
conversion takes -exp(A_log) for A and drops the middle axis of the convolution.
"""

import ctypes
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import torch
from backbone_sides import DECODE_STEPS
from torch import Tensor
from transformers import NemotronHConfig

KINDS = {
    "f32": gguf.GGMLQuantizationType.F32,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}
# Ours without "model.layers.N.", and theirs behind "blk.N.".
NAMES = {
    "norm.weight": "attn_norm.weight",
    "mixer.in_proj.weight": "ssm_in.weight",
    "mixer.conv1d.weight": "ssm_conv1d.weight",
    "mixer.conv1d.bias": "ssm_conv1d.bias",
    "mixer.dt_bias": "ssm_dt.bias",
    "mixer.A_log": "ssm_a",
    "mixer.D": "ssm_d",
    "mixer.norm.weight": "ssm_norm.weight",
    "mixer.out_proj.weight": "ssm_out.weight",
    "mixer.q_proj.weight": "attn_q.weight",
    "mixer.k_proj.weight": "attn_k.weight",
    "mixer.v_proj.weight": "attn_v.weight",
    "mixer.o_proj.weight": "attn_output.weight",
    "mixer.gate.weight": "ffn_gate_inp.weight",
    "mixer.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mixer.experts.up_proj": "ffn_up_exps.weight",
    "mixer.experts.down_proj": "ffn_down_exps.weight",
    "mixer.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "mixer.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
}
OUTER = {
    "model.embeddings.weight": "token_embd.weight",
    "model.norm_f.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
WHOLE = ("ssm_conv1d", "ffn_gate_inp", "norm", "token_embd")  # never quantised, as in llama.cpp


def write_gguf(path: Path, config: NemotronHConfig, weights: dict[str, Tensor], kind: str) -> None:
    """Write weights of `HybridForCausalLM` for llama.cpp.

    Args:
        path: The file.
        config: Their config.
        weights: A state dict in float32.
        kind: A key of `KINDS`, for the matrices.
    """
    writer = gguf.GGUFWriter(path, "nemotron_h_moe")
    layers = config.layer_types
    writer.add_block_count(len(layers))
    writer.add_context_length(65_536)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_feed_forward_length(
        [config.moe_intermediate_size if layer == "moe" else 0 for layer in layers]
    )
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(
        [config.num_key_value_heads if layer == "full_attention" else 0 for layer in layers]
    )
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_ssm_conv_kernel(config.conv_kernel)
    writer.add_ssm_inner_size(config.mamba_num_heads * config.mamba_head_dim)
    writer.add_ssm_state_size(config.ssm_state_size)
    writer.add_ssm_time_step_rank(config.mamba_num_heads)
    writer.add_ssm_group_count(config.n_groups)
    writer.add_expert_count(config.n_routed_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_shared_feed_forward_length(config.moe_shared_expert_intermediate_size)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_weights_norm(config.norm_topk_prob)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    packed: dict[int, np.ndarray] = {}  # tied experts are quantised once
    for name, tensor in weights.items():
        theirs = OUTER.get(name)
        if theirs is None:
            _, _, layer, rest = name.split(".", 3)
            theirs = f"blk.{layer}.{NAMES[rest]}"
        values = _as_theirs(theirs, tensor, config)
        is_matrix = values.ndim > 1 and theirs.split(".")[-1] == "weight"
        if not is_matrix or kind == "f32" or any(part in theirs for part in WHOLE):
            writer.add_tensor(theirs, values)
            continue
        if tensor.data_ptr() not in packed:
            packed[tensor.data_ptr()] = gguf.quants.quantize(values, KINDS[kind])
        writer.add_tensor(theirs, packed[tensor.data_ptr()], raw_dtype=KINDS[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _as_theirs(name: str, tensor: Tensor, config: NemotronHConfig) -> np.ndarray:
    values = tensor.detach().float()
    if name.endswith("ssm_a"):
        values = -values.exp()
    if name.endswith(("ssm_a", "ssm_d")):
        values = values[:, None]
    if name.endswith("ssm_norm.weight"):
        values = values.view(config.n_groups, -1)
    if name.endswith("ssm_conv1d.weight"):
        values = values.squeeze(1)
    return np.ascontiguousarray(values.numpy())


class LlamaCpp:
    """A model in llama.cpp on the CPU, with its defaults.

    Args:
        path: GGUF file.
        threads: Cores.
        length: Most tokens in its memory.
        exact: Keep keys and values in float32, and attend without its fused kernel.
    """

    def __init__(self, path: Path, threads: int, length: int, *, exact: bool = False) -> None:
        llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()
        settings.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
        if not self.model:
            raise SystemExit(f"llama.cpp does not load {path}.")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch = length, length
        options.n_threads = options.n_threads_batch = threads
        if exact:
            options.type_k = options.type_v = llama_cpp.GGML_TYPE_F32
            options.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(vocab)

    def forget(self) -> None:
        """Empty the memory."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def read(self, ids: list[int]) -> np.ndarray:
        """Read tokens behind those before; the scores after the last."""
        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        batch = llama_cpp.llama_batch_get_one(tokens, len(ids))
        if llama_cpp.llama_decode(self.context, batch):
            raise SystemExit("llama.cpp failed to read a batch.")
        scores = llama_cpp.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(scores, shape=(self.vocab_size,))


@llama_cpp.llama_log_callback
def _SILENT(level: int, text: bytes, data: ctypes.c_void_p) -> None:  # noqa: N802 (a constant)
    """Say nothing."""


def prefill_work(path: Path, threads: int, ids: Tensor) -> Callable[[], None]:
    """Reads a prompt."""
    model, tokens = LlamaCpp(path, threads, ids.numel()), ids.flatten().tolist()

    def work() -> None:
        model.forget()
        model.read(tokens)

    return work


def decode_work(path: Path, threads: int, prompt: Tensor) -> Callable[[], float]:
    """Tokens after a prompt, one at a time; seconds are those of a token."""
    tokens = prompt.flatten().tolist()
    model = LlamaCpp(path, threads, len(tokens) + DECODE_STEPS)

    def work() -> float:
        model.forget()
        scores = model.read(tokens)
        start = time.perf_counter()
        for _ in range(DECODE_STEPS):
            scores = model.read([int(scores.argmax())])
        return (time.perf_counter() - start) / DECODE_STEPS

    return work


def difference(path: Path, expected: Tensor, ids: Tensor) -> float:
    """How far its scores are from ours, over their norm: 1e-3 is rounding in float32.

    Random weights choose experts by a hair, so that one rounding moves much of what follows.
    """
    model = LlamaCpp(path, 2, ids.numel(), exact=True)
    found = torch.from_numpy(model.read(ids.flatten().tolist()).copy())
    return float((found - expected).norm() / expected.norm())
