import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omni.backbone.ssd import (
    LEAST_LOG,
    _Chunks,
    number_runs,
    ssd_reference,
    ssd_scan,
    ssd_step,
)

# Float64 throughout, so that the two orders of summation agree to rounding: measured
# worst case over sizes, chunks and packings 7e-14, gradients relative to their largest value.
TOLERANCE = 1e-11


def make_inputs(*, batch=2, seq=13, heads=4, groups=2, head_dim=3, state=5, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = {
        "x": random(batch, seq, heads, head_dim),
        "dt": random(batch, seq, heads).abs(),
        "A": -random(heads).exp(),
        "B": random(batch, seq, groups, state),
        "C": random(batch, seq, groups, state),
        "D": random(heads),
        "initial_state": random(batch, heads, head_dim, state),
    }
    return {name: tensor.requires_grad_() for name, tensor in inputs.items()}


def outputs_and_gradients(function, inputs, **options):
    y, state = function(**inputs, **options)
    loss = (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum() + state.square().sum()
    return y, state, *torch.autograd.grad(loss, list(inputs.values()))


def slice_inputs(inputs, rows):
    return {k: v[:, rows] if k in ("x", "dt", "B", "C") else v for k, v in inputs.items()}


@settings(max_examples=12)
@given(
    seq=st.integers(1, 40),
    chunk_size=st.none() | st.integers(1, 50),
    groups=st.sampled_from([1, 2, 4]),
    cuts=st.none() | st.lists(st.integers(0, 3), min_size=40, max_size=40),
)
def test_any_chunk_size_equals_the_loop_in_values_state_and_gradients(
    seq, chunk_size, groups, cuts
):
    inputs = make_inputs(seq=seq, groups=groups)
    segments = None if cuts is None else torch.tensor([sorted(cuts)[:seq], cuts[:seq]])
    expected = outputs_and_gradients(ssd_reference, inputs, segment_ids=segments)
    found = outputs_and_gradients(ssd_scan, inputs, segment_ids=segments, chunk_size=chunk_size)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("starts", [False, True])
def test_gradients_are_those_of_finite_differences(starts, packed):
    inputs = make_inputs(seq=7, heads=2, head_dim=2, state=3)
    names = [name for name in inputs if starts or name != "initial_state"]
    segments = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1]]) if packed else None

    def scan(*tensors):
        given = dict(zip(names, tensors, strict=True))
        return ssd_scan(**given, segment_ids=segments, chunk_size=3)

    assert torch.autograd.gradcheck(scan, tuple(inputs[name] for name in names))


@given(seq=st.integers(1, 9), head_dim=st.integers(1, 2), chunk_size=st.integers(1, 4))
def test_inputs_stay_as_they_are(seq, head_dim, chunk_size):
    inputs = make_inputs(seq=seq, head_dim=head_dim, heads=2, batch=1)
    before = {name: tensor.detach().clone() for name, tensor in inputs.items()}
    outputs_and_gradients(ssd_scan, inputs, chunk_size=chunk_size)
    for name, tensor in inputs.items():
        assert torch.equal(tensor, before[name]), name


def test_float32_gradients_are_as_exact_as_float32():
    """The decay's gradient is a difference of sums; measured relative error at most 2e-6."""
    inputs = {k: v.detach().float() for k, v in make_inputs(seq=200, head_dim=16, state=16).items()}
    rounded = {k: v.double().requires_grad_() for k, v in inputs.items()}
    expected = outputs_and_gradients(ssd_reference, rounded)
    found = outputs_and_gradients(ssd_scan, {k: v.requires_grad_() for k, v in inputs.items()})
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() < 1e-5 * b.abs().max()


def test_a_sequence_in_two_parts_equals_one_when_the_state_is_handed_on():
    inputs = make_inputs(seq=21)
    y, state = ssd_scan(**inputs)
    first, between = ssd_scan(**slice_inputs(inputs, slice(0, 8)))
    rest = slice_inputs(inputs, slice(8, None)) | {"initial_state": between}
    second, end = ssd_scan(**rest)
    torch.testing.assert_close(torch.cat([first, second], 1), y, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(end, state, rtol=TOLERANCE, atol=TOLERANCE)


def test_step_by_step_equals_the_scan():
    inputs = {name: tensor.detach() for name, tensor in make_inputs(seq=9).items()}
    y, final = ssd_scan(**inputs)
    state = inputs["initial_state"].clone()
    for t in range(9):
        token = {name: inputs[name][:, t] for name in ("x", "dt", "B", "C")}
        step = ssd_step(**token, A=inputs["A"], D=inputs["D"], state=state)
        torch.testing.assert_close(step, y[:, t], rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(state, final, rtol=TOLERANCE, atol=TOLERANCE)


def test_packed_segments_equal_the_segments_alone():
    inputs = make_inputs(seq=17, batch=1)
    inputs["initial_state"] = torch.zeros_like(inputs["initial_state"])
    segments = torch.tensor([[7] * 5 + [3] * 11 + [7] * 1])
    packed, state = ssd_scan(**inputs, segment_ids=segments, chunk_size=4)
    for start, end in ((0, 5), (5, 16), (16, 17)):
        alone, alone_state = ssd_scan(**slice_inputs(inputs, slice(start, end)))
        torch.testing.assert_close(packed[:, start:end], alone, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(state, alone_state, rtol=TOLERANCE, atol=TOLERANCE)


def test_positions_with_zero_step_leave_the_state_untouched():
    inputs = {name: tensor.detach() for name, tensor in make_inputs(seq=12).items()}
    inputs["dt"] = inputs["dt"].index_fill(1, torch.tensor([0, 4, 5, 11]), 0.0)
    kept = torch.tensor([1, 2, 3, 6, 7, 8, 9, 10])
    _, state = ssd_scan(**inputs, chunk_size=4)
    _, expected = ssd_scan(**slice_inputs(inputs, kept))
    torch.testing.assert_close(state, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("packed", [False, True])
def test_strong_decay_gives_finite_values_and_gradients(packed):
    """exp(s_t - s_j) above the diagonal would overflow; a difference of infinities would be NaN."""
    inputs = make_inputs(seq=64)
    inputs["dt"] = (inputs["dt"].detach() * 1e4).requires_grad_()
    segments = (torch.arange(64) // 10).expand(2, 64) if packed else None
    for tensor in outputs_and_gradients(ssd_scan, inputs, segment_ids=segments):
        assert tensor.isfinite().all()


def test_strong_decay_makes_no_denormal_numbers():
    inputs = {name: tensor.float() for name, tensor in make_inputs(seq=64).items()}
    inputs["dt"] = inputs["dt"] + 1.0
    x, dt, B, C, A = (inputs[name].detach() for name in ("x", "dt", "B", "C", "A"))
    chunks = _Chunks.cut(x, dt, B, C, A, None, 32)
    assert (dt * A).cumsum(1).min() < -150  # float32 has no such power of e
    within = [chunks.decay(r) for r in range(chunks.u.shape[4])]
    for decay in (*within, chunks.to_end, chunks.from_start, chunks.through):
        assert decay.min() >= 0.99 * math.exp(LEAST_LOG)
    found, expected = (scan(**inputs)[0] for scan in (ssd_scan, ssd_reference))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_half_precision_input_keeps_a_float32_state():
    inputs = {name: tensor.detach().bfloat16() for name, tensor in make_inputs().items()}
    y, state = ssd_scan(**inputs)
    assert y.dtype == torch.bfloat16
    assert state.dtype == torch.float32


def test_runs_number_a_reused_id_as_a_new_segment():
    assert number_runs(torch.tensor([[4, 4, 9, 4, 4]])).tolist() == [[0, 0, 1, 2, 2]]
