"""Products of int8 rows by the library are PyTorch's: the same integers, rounded the same way."""

import dataclasses

import pytest
import torch

from omni.backbone.moe import Experts
from omni.backbone.native import experts, rows
from omni.backbone.native.library import Library, UnavailableError
from omni.quantization import formats
from omni.quantization.formats import linear_int8, quantize_int8, quantize_rows
from omni.quantization.modules import QuantizedExperts, QuantizedLinear, choose_format
from tests.support.backbone import tiny_config
from tests.support.native import default_dtype, needs_compiler, needs_products

pytestmark = needs_compiler


@pytest.fixture(autouse=True)
def library(monkeypatch):
    """The library, built, and nothing known of it yet."""
    monkeypatch.setattr(rows, "_agrees", None)
    monkeypatch.setattr(experts, "_agrees", None)
    return Library.get()


def unavailable(cls, wait_s=0):
    raise UnavailableError("not here")


def random_rows(count, width, seed=0):
    """Rows of very different sizes, one of them zero."""
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(count, width, generator=make)
    x *= 10.0 ** torch.randint(-6, 6, (count, 1), generator=make)
    x[count // 2] = 0
    return x


@pytest.mark.parametrize("width", [1, 15, 16, 63, 64, 65, 130, 1000])
@pytest.mark.parametrize("count", [1, 2, 5, 17])
def test_rows_are_rounded_as_by_pytorch(library, count, width):
    x = random_rows(count, width)
    [(q, units)] = rows.round_rows(library, x)
    expected, scale = quantize_rows(x)
    assert torch.equal(q, expected)
    assert torch.equal(units, scale)


def test_the_second_step_rounds_what_the_first_has_left(library):
    x = random_rows(9, 200)
    (q, units), (rest, rest_units) = rows.round_rows(library, x, two_steps=True)
    restored = q * units + rest * rest_units
    largest = x.abs().amax(-1, keepdim=True)
    assert ((restored - x).abs() <= largest / 127**2).all()


def test_a_number_that_is_not_finite_stays_visible(library):
    x = torch.ones(3, 70)
    x[1, 68], x[2, 3] = torch.nan, torch.inf
    [(_, units)] = rows.round_rows(library, x)
    assert units.isnan().flatten().tolist() == [False, True, True]


@pytest.mark.parametrize("two_steps", [False, True])
@pytest.mark.parametrize("count", [5, 33, 700])
def test_a_linear_layer_is_that_of_pytorch(monkeypatch, count, two_steps):
    weight, scale = quantize_int8(torch.randn(48, 144))
    x = random_rows(count, 144)
    found = linear_int8(x, weight, scale, two_steps=two_steps)
    monkeypatch.setattr(Library, "get", classmethod(unavailable))
    expected = linear_int8(x, weight, scale, two_steps=two_steps)
    size = expected.abs().amax(-1, keepdim=True)
    assert ((found - expected).abs() <= 1e-6 * size).all()
    assert found.shape == (count, 48)


@pytest.mark.parametrize("is_there", [True, False], ids=["library", "PyTorch"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_rows_may_have_any_float_type_and_a_gradient(monkeypatch, is_there, dtype):
    if not is_there:
        monkeypatch.setattr(Library, "get", classmethod(unavailable))
    weight, scale = quantize_int8(torch.randn(48, 144))
    x = torch.randn(9, 144).to(dtype).requires_grad_()
    found = linear_int8(x, weight, scale)
    assert found.dtype == torch.float32
    assert torch.equal(found, linear_int8(x.float(), weight, scale))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_default_type_changes_nothing(dtype):
    weight, scale = quantize_int8(torch.randn(48, 144))
    x = torch.randn(9, 144)
    expected = linear_int8(x, weight, scale)
    rows._agrees = None
    with default_dtype(dtype):
        assert torch.equal(linear_int8(x, weight, scale), expected)


def test_other_devices_are_left_to_pytorch():
    layer = QuantizedLinear(choose_format(8, 144), torch.nn.Linear(144, 48)).to("meta")
    assert layer(torch.empty(9, 144, device="meta")).shape == (9, 48)


def build_experts(num_experts=5, width=72, inner=56, activation="relu2"):
    config = tiny_config(
        "E",
        hidden_size=width,
        n_routed_experts=num_experts,
        moe_intermediate_size=inner,
        mlp_hidden_act=activation,
    )
    plain = Experts(config)
    quantized = QuantizedExperts(choose_format(8, width), choose_format(8, inner), plain)
    for number in range(num_experts):
        quantized.up_proj.load(torch.randn(inner, width) * 0.2, number)
        quantized.down_proj.load(torch.randn(width, inner) * 0.2, number)
    return quantized


def route(count, num_experts, chosen=2, seed=0):
    make = torch.Generator().manual_seed(seed)
    picked = [torch.randperm(num_experts, generator=make)[:chosen] for _ in range(count)]
    return torch.rand(count, chosen, generator=make), torch.stack(picked)


# Up to four rows of an expert are multiplied in bfloat16 by the reference: none here has so few.
@pytest.mark.parametrize(
    ("width", "inner", "activation"),
    [(72, 56, "relu2"), (64, 128, "silu"), (33, 7, "gelu"), (200, 131, "relu"), (3, 2, "relu2")],
)
@pytest.mark.parametrize("threads", [1, 2, 3])
@needs_products
def test_experts_are_those_of_pytorch_whatever_their_widths(width, inner, activation, threads):
    layer = build_experts(width=width, inner=inner, activation=activation)
    x = torch.randn(90, width)
    weights, chosen = route(90, 4)  # nobody takes the fifth
    found = on_threads(threads, layer, x, weights, chosen)
    assert experts._agrees
    expected = layer.sorted_by_expert(x, weights, chosen)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max())


def on_threads(threads, layer, *arguments):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return layer(*arguments)
    finally:
        torch.set_num_threads(before)


@needs_products
def test_experts_with_many_and_few_rows_in_turns_do_not_depend_on_threads():
    layer = build_experts(num_experts=24, width=96, inner=160)
    x, weights = torch.randn(60, 96), torch.rand(60, 2)
    # Even experts get all tokens but those of the odd ones, which get one to four.
    chosen = torch.stack([torch.arange(60) % 3 * 2, torch.arange(60) % 4 * 2 + 8], dim=1)
    for token, expert in enumerate((1, 3, 3, 5, 5, 5, 7, 7, 7, 7, 23)):
        chosen[token, 0] = expert
    alone = on_threads(1, layer, x, weights, chosen)
    expected = layer.sorted_by_expert(x, weights, chosen)
    assert (alone - expected).norm() <= 0.02 * expected.norm()
    for threads in (2, 3, 5):
        for _ in range(20):
            assert torch.equal(on_threads(threads, layer, x, weights, chosen), alone)


@needs_products
@pytest.mark.parametrize("count", [3, 40])
@pytest.mark.parametrize("activation", ["relu2", "relu", "silu", "gelu"])
def test_a_number_that_is_not_finite_stays_visible_in_experts(count, activation):
    layer = build_experts(activation=activation)
    x, (weights, chosen) = torch.randn(count, 72), route(count, 5)
    layer(x, weights, chosen)  # compared with the reference
    x[1, 3], x[2, 70] = torch.nan, torch.inf
    found = layer(x, weights, chosen)
    assert found.isnan().all(1).nonzero().flatten().tolist() == [1, 2]


@needs_products
def test_a_first_result_that_is_not_finite_proves_nothing(library):
    layer = build_experts()
    x, (weights, chosen) = torch.randn(12, 72), route(12, 5)
    assert layer(x * torch.nan, weights, chosen).isnan().all()
    assert experts._agrees is None
    layer(x, weights, chosen)
    assert experts._agrees


def test_weights_that_lie_otherwise_are_left_to_pytorch():
    layer = build_experts()
    x, (weights, chosen) = torch.randn(40, 72), route(40, 5)
    expected = layer.sorted_by_expert(x, weights, chosen)
    layer.up_proj.weight = layer.up_proj.weight.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(layer(x, weights, chosen), expected)


@needs_products
def test_a_token_has_the_same_result_alone_and_among_others():
    layer = build_experts(num_experts=4)
    x = torch.randn(150, 72)
    weights, chosen = route(150, 4)
    together = layer(x, weights, chosen)
    few = torch.arange(0, 150, 3)
    assert torch.bincount(chosen[few].flatten()).min() > 4  # fewer are rounded to 16 bits
    assert torch.equal(layer(x[few], weights[few], chosen[few]), together[few])


@needs_products
def test_few_rows_of_an_expert_are_rounded_to_16_bits():
    layer = build_experts(num_experts=8)
    x, (weights, chosen) = torch.randn(4, 72), route(4, 8)
    assert torch.bincount(chosen.flatten()).max() <= 4
    exact = torch.zeros_like(x)
    for token, (shares, picked) in enumerate(zip(weights, chosen, strict=True)):
        for share, expert in zip(shares, picked.tolist(), strict=True):
            up, down = (w.dequantize(expert) for w in (layer.up_proj, layer.down_proj))
            exact[token] += share * (down @ layer.activation(up @ x[token]))
    found = layer(x, weights, chosen)
    torch.testing.assert_close(found, exact, rtol=0, atol=3e-4 * exact.abs().max())


def test_without_the_library_pytorch_multiplies(monkeypatch):
    monkeypatch.setattr(Library, "get", classmethod(unavailable))
    layer = build_experts()
    x, (weights, chosen) = torch.randn(40, 72), route(40, 5)
    found = layer(x, weights, chosen)
    assert torch.equal(found, layer.sorted_by_expert(x, weights, chosen))
    assert experts._agrees is None


def fake(library, **functions):
    """The library with other functions."""
    changed = dataclasses.replace(library, **functions)
    return classmethod(lambda cls, wait_s=0: changed)


def test_a_library_with_wrong_results_is_not_used(monkeypatch, library):
    def write_nothing(*arguments):
        return 1

    wrong = dict.fromkeys(("experts", "round", "scale"), write_nothing)
    monkeypatch.setattr(Library, "get", fake(library, **wrong))
    layer = build_experts()
    x, (weights, chosen) = torch.randn(40, 72), route(40, 5)
    monkeypatch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)
    monkeypatch.setattr(torch, "empty_like", torch.zeros_like)
    with pytest.warns(UserWarning, match="rounding is not used"):
        assert rows.find_library() is None
    assert rows.find_library() is None  # and is not tried again
    with pytest.warns(UserWarning, match="experts are not used"):
        found = layer(x, weights, chosen)
    assert torch.equal(found, layer.sorted_by_expert(x, weights, chosen))


def test_a_processor_without_products_of_bytes_leaves_them_to_pytorch(monkeypatch, library):
    monkeypatch.setattr(Library, "get", fake(library, experts=lambda *arguments: 0))
    layer = build_experts()
    x, (weights, chosen) = torch.randn(40, 72), route(40, 5)
    monkeypatch.setattr(formats, "find_library", lambda: None)
    assert torch.equal(layer(x, weights, chosen), layer.sorted_by_expert(x, weights, chosen))
    assert experts._agrees is False
