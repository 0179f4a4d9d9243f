from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omni.backbone import attention
from omni.backbone.attention import Attention, causal_mask
from omni.backbone.ssd import number_runs
from tests.support.backbone import tiny_model

# Float64, so that another order of summation shows as rounding only: measured 1e-15.
EXACT = {"rtol": 0, "atol": 1e-10}


@given(seq=st.integers(1, 6), past=st.integers(0, 5), data=st.data())
def test_the_rows_of_a_mask_are_those_of_its_definition(seq, past, data):
    bits = st.lists(st.booleans(), min_size=past + seq, max_size=past + seq)
    real = torch.tensor([data.draw(bits), data.draw(bits)])
    segments = None
    if past == 0:
        segments = number_runs(torch.tensor([data.draw(bits), data.draw(bits)]).long())
    mask = causal_mask(seq, past, key_mask=real, segment_ids=segments)
    start = data.draw(st.integers(0, seq - 1))
    stop = data.draw(st.integers(start + 1, seq))
    rows = mask.rows(start, stop, torch.device("cpu"))
    for row in range(2):
        for query in range(start, stop):
            for key in range(past + stop):
                together = segments is None or segments[row, query] == segments[row, key]
                itself = key == past + query
                expected = key <= past + query and together and (itself or bool(real[row, key]))
                assert bool(rows[row, 0, query - start, key]) == expected


@pytest.mark.parametrize("size", [1, 20, 70])
def test_attention_does_not_depend_on_how_many_queries_it_takes_at_once(monkeypatch, size):
    model = tiny_model("M*E*").double()
    ids = torch.randint(40, (2, 9))
    padding = torch.tensor([[False] * 3 + [True] * 6, [True] * 9])
    segments = torch.tensor([[0] * 5 + [1] * 4, [0] * 2 + [1] * 7])

    def outputs():
        cache = model.new_cache()
        model(ids[:, :2], cache=cache)
        packed = model(ids, segment_ids=segments).logits
        gradients = torch.autograd.grad(packed.square().sum(), list(model.parameters()))
        return [
            model(ids, attention_mask=padding).logits,
            model(ids[:, 2:], cache=cache).logits,
            packed,
            *gradients,
        ]

    whole = outputs()
    monkeypatch.setattr(attention, "MAX_CPU_MASK_SIZE", size)
    for a, b in zip(outputs(), whole, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("threads", [1, 99], ids=["a head of keys a thread", "fewer heads"])
def test_single_positions_equal_the_sequence_however_heads_are_shared_out(monkeypatch, threads):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    model = tiny_model("*E*").double()
    ids = torch.randint(40, (2, 7))
    padding = torch.tensor([[False] * 3 + [True] * 4, [True] * 7])
    for mask in (None, padding):
        with torch.no_grad():
            expected = model(ids, attention_mask=mask).logits
            cache = model.new_cache()
            steps = [
                model(
                    ids[:, t : t + 1],
                    attention_mask=None if mask is None else mask[:, : t + 1],
                    cache=cache,
                ).logits
                for t in range(7)
            ]
        found = torch.cat(steps, 1)
        real = padding if mask is not None else torch.ones(2, 7, dtype=torch.bool)
        torch.testing.assert_close(found[real], expected[real], **EXACT)


@given(data=st.data())
def test_packed_sequences_one_by_one_equal_the_mask(data):
    """With grouped queries and padding behind; gradients too."""
    torch.manual_seed(0)
    seq = data.draw(st.integers(1, 7))
    bits = st.lists(st.booleans(), min_size=seq, max_size=seq)
    segments = number_runs(torch.tensor([data.draw(bits), data.draw(bits)]).long())
    lengths = torch.tensor([data.draw(st.integers(1, seq)), seq])
    real = torch.arange(seq) < lengths[:, None]
    mask = causal_mask(seq, 0, key_mask=real, segment_ids=segments)
    layer = next(m for m in tiny_model("*").double().modules() if isinstance(m, Attention))
    hidden = torch.randn(2, seq, layer.q_proj.in_features, dtype=torch.double)
    found, expected = [], []
    for results, chosen in ((found, mask), (expected, replace(mask))):
        if results is expected:  # as an accelerator does it
            chosen.__dict__["runs"] = None
        x = hidden.clone().requires_grad_()
        out = layer(x, chosen)
        out[real].square().sum().backward()
        results += [out[real], x.grad]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **EXACT)
