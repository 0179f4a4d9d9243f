import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omni.backbone import columns
from omni.backbone.columns import is_in_columns, multiply_chosen, suits_columns, to_columns
from omni.backbone.moe import MAX_COLUMN_TOKENS, Experts, lay_columns
from tests.support.backbone import randomise, tiny_config, tiny_model

# Float32 sums of up to 60 products of size 1 in another order: measured 4e-6.
TOLERANCE = {"rtol": 1e-5, "atol": 2e-5}


@given(
    pairs=st.integers(1, 20),
    matrices=st.integers(1, 5),
    n=st.integers(1, 70),
    k=st.integers(1, 60),
    seed=st.integers(0, 99),
)
def test_each_row_meets_its_matrix(pairs, matrices, n, k, seed):
    torch.manual_seed(seed)
    x, stack = torch.randn(pairs, k), torch.randn(matrices, n, k)
    chosen = torch.randint(matrices, (pairs,))
    found = multiply_chosen(x, to_columns(stack), chosen)
    torch.testing.assert_close(found, torch.einsum("pnk,pk->pn", stack[chosen], x), **TOLERANCE)


def test_laying_columns_moves_the_numbers_and_keeps_the_matrices():
    stack = torch.randn(3, 5, 7)
    laid = to_columns(stack)
    assert torch.equal(laid, stack)
    assert is_in_columns(laid)
    assert not is_in_columns(stack)
    assert not is_in_columns(laid.double())


@pytest.mark.skipif(not suits_columns(torch.ones(1, 1, 1)), reason="no FBGEMM on this processor")
def test_only_short_columns_in_float32_suit():
    longest = columns.MAX_COLUMN
    assert suits_columns(torch.ones(1, longest, 2))
    assert not suits_columns(torch.ones(1, longest + 1, 2))
    assert not suits_columns(torch.ones(1, longest, 2).bfloat16())
    assert not suits_columns(torch.ones(1, longest, 2, device="meta"))


@pytest.fixture
def _always_suits(monkeypatch):
    monkeypatch.setattr("omni.backbone.moe.suits_columns", lambda stack: True)


@pytest.mark.usefixtures("_always_suits")
@pytest.mark.parametrize("num_tokens", [1, 2, MAX_COLUMN_TOKENS, MAX_COLUMN_TOKENS + 1])
def test_experts_in_columns_equal_experts_in_rows(num_tokens, monkeypatch):
    experts = Experts(tiny_config())
    randomise(experts)
    x, weights = torch.randn(num_tokens, 16), torch.rand(num_tokens, 2)
    chosen = torch.stack([torch.randperm(8)[:2] for _ in range(num_tokens)])
    calls = []
    real = columns.multiply_chosen
    monkeypatch.setattr("omni.backbone.moe.multiply_chosen", lambda *a: calls.append(1) or real(*a))
    with torch.no_grad():
        expected = experts(x, weights, chosen)
        assert not calls
        experts.lay_columns()
        found = experts(x, weights, chosen)
    assert len(calls) == (2 if num_tokens <= MAX_COLUMN_TOKENS else 0)
    torch.testing.assert_close(found, expected, **TOLERANCE)


@pytest.mark.usefixtures("_always_suits")
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_a_model_laid_for_decoding_answers_step_by_step_as_at_once(batch):
    model = tiny_model("ME*EM*E")
    ids = torch.randint(40, (batch, 9))
    with torch.no_grad():
        expected = model(ids).logits
        lay_columns(model)
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
        cache = model.new_cache()
        steps = [model(ids[:, t : t + 1], cache=cache).logits for t in range(9)]
    torch.testing.assert_close(torch.cat(steps, 1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("_always_suits")
def test_gradients_do_not_depend_on_how_experts_lie():
    gradients = []
    for lays in (False, True):
        model = tiny_model("ME")
        if lays:
            lay_columns(model)
        torch.manual_seed(1)
        model(torch.randint(40, (2, 7))).logits.square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
