import pytest
import torch
import torch.nn.functional as F

from omni.backbone import products
from omni.backbone.products import Linear, linear, use_fast_products

# Float32 sums of 48 products of size 1 in another order: measured 4e-6.
TOLERANCE = {"rtol": 1e-5, "atol": 2e-5}


@pytest.fixture(params=[True, False], ids=["oneDNN", "PyTorch's own"])
def _library(request, monkeypatch):
    if request.param and not products._has_operator():
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(products, "prefers_onednn", lambda: request.param)


@pytest.fixture(params=[products.MAX_WRITTEN_OUT, 0], ids=["written out", "by a library"])
def _one_row(request, monkeypatch):
    monkeypatch.setattr(products, "MAX_WRITTEN_OUT", request.param)


@pytest.mark.usefixtures("_library", "_one_row")
@pytest.mark.parametrize("shape", [(48,), (1, 48), (7, 48), (2, 5, 48), (1, 1, 48)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_products_equal_pytorchs_in_values_and_gradients(shape, has_bias):
    x = torch.randn(shape, requires_grad=True)
    weight = torch.randn(33, 48, requires_grad=True)
    bias = torch.randn(33, requires_grad=True) if has_bias else None
    found, expected = linear(x, weight, bias), F.linear(x, weight, bias)
    torch.testing.assert_close(found, expected, **TOLERANCE)
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight, bias), expected, **TOLERANCE)
    wanted = [tensor for tensor in (x, weight, bias) if tensor is not None]
    for a, b in zip(
        torch.autograd.grad(found.sin().sum(), wanted),
        torch.autograd.grad(expected.sin().sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b, **TOLERANCE)


@pytest.mark.usefixtures("_library")
def test_strided_tensors_are_multiplied_as_they_read():
    x, weight = torch.randn(3, 4, 96)[..., ::2], torch.randn(48, 33).t()
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight), **TOLERANCE)


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize("frozen", ["weight", "input"])
def test_what_is_frozen_gets_no_gradient(frozen):
    layer = Linear(48, 33).requires_grad_(frozen != "weight")
    x = torch.randn(2, 48, requires_grad=frozen != "input")
    layer(x).sum().backward()
    assert (x.grad is None) == (frozen == "input")
    assert (layer.weight.grad is None) == (frozen == "weight")


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_take_pytorchs_own_path_exactly(dtype):
    x, weight = torch.randn(5, 48, dtype=dtype), torch.randn(33, 48, dtype=dtype)
    assert torch.equal(linear(x, weight), F.linear(x, weight))


@pytest.mark.usefixtures("_library")
def test_autocast_still_decides_the_type():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(torch.randn(2, 48), torch.randn(3, 48)).dtype == torch.bfloat16


@pytest.mark.usefixtures("_library")
def test_no_rows_give_no_rows():
    assert linear(torch.randn(0, 48), torch.randn(3, 48)).shape == (0, 3)


def test_plain_layers_of_a_module_take_the_fast_products_and_nothing_else_changes():
    class Own(torch.nn.Linear):
        """A layer that multiplies in a way of its own."""

    module = torch.nn.Sequential(torch.nn.Linear(48, 32), torch.nn.GELU(), Own(32, 5))
    x, before = torch.randn(7, 48), module.state_dict()
    expected = module(x)
    use_fast_products(module)
    assert [type(layer) for layer in module] == [Linear, torch.nn.GELU, Own]
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    torch.testing.assert_close(module(x), expected, **TOLERANCE)
