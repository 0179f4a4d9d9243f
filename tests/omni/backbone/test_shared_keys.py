"""Few large products give what PyTorch's attention gives, and its gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from omni.backbone import attention, shared_keys
from omni.backbone.shared_keys import attend_to_shared_keys, suits_shared_keys
from tests.support.backbone import tiny_model


def made(shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 2),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    seq=st.integers(1, 40),
    past=st.integers(0, 40),
    most=st.integers(1, 400),
    step=st.integers(1, 32),
)
def test_it_is_attention_whatever_the_pieces(batch, kv_heads, group, seq, past, most, step):
    q = made((batch, kv_heads * group, seq, 8))
    k, v = made((batch, kv_heads, seq + past, 8)), made((batch, kv_heads, seq + past, 8))
    for tensor in (q, k, v):
        tensor.requires_grad_()
    above = made(q.shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_keys, "MAX_SCORES", most)
        patch.setattr(shared_keys, "KEY_STEP", step)
        found = attend_to_shared_keys(q, k, v)
        gradients = torch.autograd.grad(found, (q, k, v), above)
    visible = torch.ones(seq, seq + past, dtype=torch.bool).tril(past)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    their = torch.autograd.grad(expected, (q, k, v), above)
    for a, b in zip(gradients, their, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_keys_between_those_of_other_heads_are_read_rightly():
    q, packed = made((1, 4, 30, 8)), made((1, 30, 4, 8)).transpose(1, 2)
    k, v = packed[:, :2], packed[:, 2:]
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(attend_to_shared_keys(q, k, v), expected, rtol=0, atol=1e-12)


def test_long_prompts_take_it_and_give_the_same_scores(monkeypatch):
    model, calls = tiny_model("M*E*"), []
    ids = torch.randint(40, (1, 30))

    def scores():
        with torch.no_grad():
            cache = model.new_cache()
            first = model(ids[:, :20], cache=cache).logits
            return torch.cat([first, model(ids[:, 20:], cache=cache).logits], dim=1)

    usual = scores()

    def counted(*tensors):
        calls.append(tensors)
        return attend_to_shared_keys(*tensors)

    monkeypatch.setattr(attention, "attend_to_shared_keys", counted)
    monkeypatch.setattr(shared_keys, "MIN_SCORES", 1)
    monkeypatch.setattr(shared_keys, "prefers_onednn", lambda: True)
    torch.testing.assert_close(scores(), usual, rtol=0, atol=1e-5)
    assert len(calls) == 4  # two layers, two stretches


def test_short_prompts_and_other_types_do_not_take_it(monkeypatch):
    monkeypatch.setattr(shared_keys, "prefers_onednn", lambda: True)
    q, k = made((1, 4, 1024, 8), torch.float32), made((1, 2, 1024, 8), torch.float32)
    assert suits_shared_keys(q, k)
    assert not suits_shared_keys(q[:, :, :900], k[:, :, :900])
    assert not suits_shared_keys(q.bfloat16(), k.bfloat16())
