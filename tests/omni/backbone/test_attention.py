import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omni.backbone import attention
from omni.backbone.attention import causal_mask
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
