"""Quantised layers stand in for the float ones: same results within the error, same laws."""

import copy

import pytest
import torch
from torch import nn

from omni.backbone.cache import HybridCache
from omni.backbone.moe import Experts
from omni.errors import CheckpointError, RequestError
from omni.quantization import QuantizationConfig, quantize_modules, quantize_weights
from omni.quantization.modules import QuantizedExperts, QuantizedLinear, choose_format
from omni.quantization.recipe import StoredEmbedding
from tests.support.backbone import tiny_config, tiny_model

SIZES = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "head_dim": 16,
    "intermediate_size": 96,
    "mamba_head_dim": 16,
    "moe_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 64,
}


@pytest.fixture
def model():
    return tiny_model("ME*-", **SIZES, tie_word_embeddings=False)


def quantized(model, bits=8, **options):
    return quantize_weights(copy.deepcopy(model), QuantizationConfig(bits=bits, **options))


def experts_of(bits: int) -> tuple[Experts, QuantizedExperts]:
    torch.manual_seed(0)
    experts = Experts(tiny_config(**SIZES))
    nn.init.normal_(experts.up_proj)
    nn.init.normal_(experts.down_proj)
    holder = nn.ModuleDict({"experts": experts})
    return experts, quantize_weights(holder, QuantizationConfig(bits=bits, group_size=32))[
        "experts"
    ]


def dequantized(experts: Experts, quantised: QuantizedExperts) -> Experts:
    exact = copy.deepcopy(experts)
    with torch.no_grad():
        for e in range(len(exact.up_proj)):
            exact.up_proj[e] = quantised.up_proj.dequantize(e)
            exact.down_proj[e] = quantised.down_proj.dequantize(e)
    return exact


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("tokens", [1, 3, 150])
@torch.no_grad()
def test_experts_agree_with_the_dequantised_reference(bits, tokens):
    experts, quantised = experts_of(bits)
    x, weights = torch.randn(tokens, 64), torch.rand(tokens, 2)
    chosen = torch.stack([torch.randperm(8)[:2] for _ in range(tokens)])
    expected = dequantized(experts, quantised)(x, weights, chosen)
    found = quantised(x, weights, chosen)
    # Two roundings of activations; the squared relu doubles the first. Measured: 0.004 to 0.018.
    assert (found - expected).norm() < 0.04 * expected.norm()


@pytest.mark.parametrize("bits", [8, 4])
@torch.no_grad()
def test_one_token_is_what_it_is_among_few(bits):
    _, quantised = experts_of(bits)
    x, weights = torch.randn(2, 64), torch.rand(2, 2)
    chosen = torch.tensor([[0, 1], [2, 3]])
    alone = quantised(x[:1], weights[:1], chosen[:1])
    among = quantised(x, weights, chosen)[:1]
    assert (among - alone).norm() <= 0.02 * alone.norm()  # activations in 8 bits, or in 16


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 1, 2, 40])
@torch.no_grad()
def test_inputs_may_lie_anyhow_and_be_empty(bits, dtype, rows):
    layer = nn.Linear(64, 96)
    quantised = QuantizedLinear(choose_format(bits, 64), layer)
    quantised.load(layer.weight)
    x = torch.randn(rows, 64, dtype=dtype)
    expected = quantised(x)
    assert expected.shape == (rows, 96)
    shifted = torch.empty(64 * rows + 1, dtype=dtype)[1:].view(rows, 64).copy_(x)
    for odd in (x.t().contiguous().t(), torch.cat([x, x], dim=1)[:, :64], shifted):
        assert torch.equal(quantised(odd), expected)
    assert quantised(torch.empty(2, 0, 64, dtype=dtype)).shape == (2, 0, 96)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("tokens", [1, 3, 150])
def test_gradients_are_refused_and_not_lost(bits, tokens):
    _, quantised = experts_of(bits)
    linear = nn.Linear(64, 64)
    layer = QuantizedLinear(choose_format(bits, 64), linear)
    layer.load(linear.weight)
    x = torch.randn(tokens, 64, requires_grad=True)
    weights, chosen = torch.rand(tokens, 2), torch.randint(8, (tokens, 2))
    for y in (layer(x), quantised(x, weights, chosen)):
        with pytest.raises(RequestError, match="pass no gradients"):
            y.sum().backward()
    with torch.no_grad():
        assert not layer(x).requires_grad


def test_what_is_sensitive_stays_as_it_is(model):
    new = quantized(model, bits=4)
    kinds = {name: type(module) for name, module in new.named_modules()}
    assert kinds["model.layers.1.mixer.experts"] is QuantizedExperts
    assert kinds["model.layers.0.mixer.in_proj"] is QuantizedLinear
    assert new.model.layers[0].mixer.in_proj.form.bits == 8
    assert new.model.layers[1].mixer.experts.up_proj.form.bits == 4
    assert kinds["model.embeddings"] is StoredEmbedding
    kept = ("norm.weight", "norm_f.weight", "A_log", ".D", "dt_bias", "conv1d.weight",
            "conv1d.bias", "gate.weight")  # fmt: skip
    assert all(name.endswith(kept) for name, _ in new.named_parameters())
    assert new.dtype == torch.float32


def test_a_head_of_16_bits_and_a_tied_one_are_left(model):
    assert isinstance(quantized(model, head_bits=16).lm_head, nn.Linear)
    tied = tiny_model("M", tie_word_embeddings=True)
    assert isinstance(quantized(tied).lm_head, nn.Linear)


@pytest.fixture
def dense():
    """Without a router, which may choose other experts for a small change."""
    return tiny_model("M*-", **SIZES, tie_word_embeddings=False)


@pytest.mark.parametrize(("bits", "most"), [(8, 0.15), (4, 0.4)])
@torch.no_grad()
def test_logits_move_little(dense, bits, most):
    ids = torch.randint(40, (2, 50))
    before, after = dense(ids).logits, quantized(dense, bits, group_size=32)(ids).logits
    # Large random weights amplify what each layer rounds. Measured: 0.08 and 0.2.
    assert (after - before).norm() < most * before.norm()


@pytest.mark.parametrize("bits", [8, 4])
@torch.no_grad()
def test_padded_rows_are_what_they_are_alone(dense, bits):
    new = quantized(dense, bits, group_size=32)
    ids = torch.randint(40, (1, 30))
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), ids], dim=1)
    mask = torch.arange(35)[None] >= 5
    alone = new(ids).logits
    found = new(padded, attention_mask=mask).logits[:, 5:]
    torch.testing.assert_close(found, alone, rtol=1e-3, atol=1e-3 * float(alone.std()))


@pytest.mark.parametrize("bits", [8, 4])
@torch.no_grad()
def test_steps_follow_the_whole_sequence_within_the_error_of_rounding(dense, bits):
    new = quantized(dense, bits, group_size=32)
    ids = torch.randint(40, (1, 40))
    cache = HybridCache(new.config.layer_types)
    new(ids[:, :36], cache=cache)
    steps = torch.cat([new(ids[:, i : i + 1], cache=cache).logits for i in range(36, 40)], dim=1)
    whole = new(ids).logits[:, 36:]
    # Few rows round activations to bfloat16, many to int8.
    assert (steps - whole).norm() < 0.05 * whole.norm()


def test_casting_a_model_leaves_quantised_weights_alone(model):
    new = quantized(model, bits=4, group_size=32)
    before = {name: (t.dtype, t.clone()) for name, t in new.named_buffers() if "scale" in name}
    new.to(torch.bfloat16)
    after = dict(new.named_buffers())
    for name, (dtype, value) in before.items():
        assert after[name].dtype == dtype
        assert torch.equal(after[name], value)


@pytest.mark.parametrize(("inputs", "group"), [(128, 64), (96, 32), (192, 64), (20, 0), (48, 0)])
def test_the_largest_group_that_divides_is_taken_and_else_int8(inputs, group):
    form = choose_format(4, inputs)
    assert (form.bits, form.group_size) == ((4, group) if group else (8, 0))


def test_names_with_a_prefix_choose_as_in_the_whole_model(model):
    layer = copy.deepcopy(model.model.layers[0].mixer)
    replaced = quantize_modules(layer, QuantizationConfig(bits=4), prefix="model.layers.0.mixer.")
    assert set(replaced) == {"in_proj", "out_proj"}
    assert layer.out_proj.two_steps


def test_bad_choices_say_what_is_known():
    with pytest.raises(RequestError, match="bits is 5; expected one of 8, 4"):
        QuantizationConfig(bits=5)
    with pytest.raises(RequestError, match="group_size is 48; expected one of 32, 64, 128"):
        QuantizationConfig(bits=4, group_size=48)
    with pytest.raises(CheckpointError, match="method gptq, version None; read are 'omni'"):
        QuantizationConfig.read({"quant_method": "gptq"})
    with pytest.raises(CheckpointError, match="quantise again"):
        QuantizationConfig.read({"quant_method": "omni", "version": 1, "bits": 8, "blocks": 3})
