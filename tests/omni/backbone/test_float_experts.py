"""Large float32 experts of many rows: the library gives what PyTorch gives."""

import pytest
import torch

from omni.backbone import moe
from omni.backbone.moe import Experts
from omni.backbone.native import float_experts
from omni.backbone.native.library import Library, UnavailableError
from tests.support.backbone import tiny_config
from tests.support.native import needs_compiler, needs_products

pytestmark = [needs_compiler, needs_products]


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch):
    """Every size goes to the library, of which nothing is known yet."""
    monkeypatch.setattr(moe, "LARGE", 1)
    monkeypatch.setattr(moe, "MANY", 2)
    monkeypatch.setattr(float_experts, "_agrees", None)
    with torch.no_grad():
        yield


@pytest.fixture
def calls(monkeypatch):
    """What the library returned."""
    found = []
    call = float_experts.call_experts

    def call_and_keep(*arguments):
        found.append(call(*arguments))
        return found[-1]

    monkeypatch.setattr(float_experts, "call_experts", call_and_keep)
    return found


def build(width=72, inner=56, activation="relu2", num_experts=5):
    torch.manual_seed(0)
    config = tiny_config(
        "E",
        hidden_size=width,
        n_routed_experts=num_experts,
        moe_intermediate_size=inner,
        mlp_hidden_act=activation,
    )
    layer = Experts(config).requires_grad_(False)
    for weight in layer.parameters():
        weight.normal_(std=0.2)
    return layer


def route(count, num_experts, chosen=2):
    picked = torch.stack([torch.randperm(num_experts)[:chosen] for _ in range(count)])
    return torch.rand(count, chosen), picked


@pytest.fixture
def threads():
    """Sets the number of threads for a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("width", "inner", "activation"),
    [(72, 56, "relu2"), (64, 128, "silu"), (33, 17, "gelu"), (200, 131, "relu"), (14, 14, "relu2")],
)
@pytest.mark.parametrize("count", [2, 31, 90])
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_they_are_those_of_pytorch_whatever_the_sizes(
    width, inner, activation, count, num_threads, threads, calls
):
    threads(num_threads)
    layer = build(width, inner, activation)
    x = torch.randn(count, width)
    weights, chosen = route(count, 4)  # nobody takes the fifth
    found = layer(x, weights, chosen)
    assert found is calls[0]
    expected = layer.sorted_by_expert(x, weights, chosen)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max())


def test_a_token_has_the_same_result_alone_among_others_and_on_any_number_of_threads(threads):
    layer = build(num_experts=4)
    x, (weights, chosen) = torch.randn(150, 72), route(150, 4)
    together = layer(x, weights, chosen)
    few = torch.arange(0, 150, 3)
    assert torch.equal(layer(x[few], weights[few], chosen[few]), together[few])
    for count in (1, 2, 3, 5):
        threads(count)
        for _ in range(10):
            assert torch.equal(layer(x, weights, chosen), together)


@pytest.mark.parametrize("activation", ["relu2", "relu", "silu", "gelu"])
def test_a_number_that_is_not_finite_stays_visible_where_it_is(activation):
    layer = build(activation=activation)
    x, (weights, chosen) = torch.randn(40, 72), route(40, 5)
    x[1, 3] = torch.nan
    found = layer(x, weights, chosen)
    assert found.isnan().all(1).nonzero().flatten().tolist() == [1]
    assert float_experts._agrees is None  # nothing could be compared


def test_experts_with_fewer_outputs_than_are_multiplied_together_are_left_to_pytorch(calls):
    layer = build(width=13, inner=40)
    x, (weights, chosen) = torch.randn(40, 13), route(40, 5)
    found = layer(x, weights, chosen)
    assert calls == [None]
    assert torch.equal(found, layer.sorted_by_expert(x, weights, chosen))


def test_gradients_half_precision_and_autocast_are_left_to_pytorch(calls):
    layer = build()
    x, (weights, chosen) = torch.randn(40, 72), route(40, 5)
    with torch.enable_grad():
        layer(x.requires_grad_(), weights, chosen).sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        layer(x, weights, chosen)
    build().bfloat16()(x.bfloat16(), weights, chosen)
    assert not calls


def test_weights_that_an_adapter_makes_are_left_to_pytorch(calls):
    class Doubled(torch.nn.Module):
        def forward(self, weight):
            return 2 * weight

    layer = build()
    x, (weights, chosen) = torch.randn(40, 72), route(40, 5)
    before = layer.down_proj.clone()
    torch.nn.utils.parametrize.register_parametrization(layer, "down_proj", Doubled())
    adapted = layer(x, weights, chosen)
    assert not calls
    torch.nn.utils.parametrize.remove_parametrizations(layer, "down_proj", leave_parametrized=False)
    assert torch.equal(layer.down_proj, before)
    torch.testing.assert_close(adapted, 2 * layer(x, weights, chosen), rtol=1e-4, atol=1e-4)


def test_without_the_library_pytorch_multiplies(monkeypatch):
    def unavailable(cls, wait_s=0):
        raise UnavailableError("not here")

    monkeypatch.setattr(Library, "get", classmethod(unavailable))
    layer = build()
    x, (weights, chosen) = torch.randn(40, 72), route(40, 5)
    assert torch.equal(layer(x, weights, chosen), layer.sorted_by_expert(x, weights, chosen))


def test_wrong_results_are_not_used(monkeypatch):
    monkeypatch.setattr(float_experts, "call_experts", lambda *arguments: torch.zeros(40, 72))
    layer = build()
    x, (weights, chosen) = torch.randn(40, 72), route(40, 5)
    with pytest.warns(UserWarning, match="experts are not used: their results differ"):
        found = layer(x, weights, chosen)
    expected = layer.sorted_by_expert(x, weights, chosen)
    assert torch.equal(found, expected)
    assert torch.equal(layer(x, weights, chosen), expected)
