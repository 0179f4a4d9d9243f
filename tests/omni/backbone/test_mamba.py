import pytest
import torch
import torch.nn.functional as F

from omni.backbone.cache import MambaState
from omni.backbone.mamba import MambaMixer, causal_conv
from tests.support.backbone import randomise, tiny_config

# Float64: measured 1e-15.
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}


def conv_inputs(kernel=4, seq=9):
    shapes = {"x": (2, seq, 6), "weight": (6, 1, kernel), "bias": (6,)}
    return {k: torch.randn(s, dtype=torch.float64, requires_grad=True) for k, s in shapes.items()}


@pytest.mark.parametrize("kernel", [1, 2, 4])
@pytest.mark.parametrize("seq", [1, 3, 9])
def test_convolution_equals_torchs_depthwise_one(kernel, seq):
    inputs = conv_inputs(kernel, seq)
    x, weight, bias = inputs.values()
    expected = F.conv1d(x.transpose(1, 2), weight, bias, padding=kernel - 1, groups=6)[..., :seq]
    torch.testing.assert_close(causal_conv(**inputs), expected.transpose(1, 2), **TOLERANCE)


def test_convolution_gradients_are_exact():
    inputs = conv_inputs(seq=6)
    segments = torch.tensor([[0, 0, 1, 1, 1, 2], [0, 1, 2, 2, 2, 2]])
    assert torch.autograd.gradcheck(causal_conv, tuple(inputs.values()))
    assert torch.autograd.gradcheck(
        lambda *tensors: causal_conv(*tensors, segment_ids=segments), tuple(inputs.values())
    )


def test_convolution_of_packed_segments_equals_the_segments_alone():
    inputs = conv_inputs(seq=9)
    x = inputs.pop("x")
    packed = causal_conv(x, **inputs, segment_ids=torch.tensor([[0] * 2 + [1] * 6 + [2]] * 2))
    alone = [causal_conv(part, **inputs) for part in x.split([2, 6, 1], dim=1)]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), **TOLERANCE)


def test_convolution_continues_from_a_window():
    inputs = conv_inputs(seq=9)
    x = inputs.pop("x")
    whole = causal_conv(x, **inputs)
    rest = causal_conv(x[:, 5:], **inputs, window=x[:, 2:5])
    torch.testing.assert_close(rest, whole[:, 5:], **TOLERANCE)


@pytest.fixture
def mixer():
    mixer = MambaMixer(tiny_config(time_step_min=0.5, time_step_limit=(0.0, 0.9)))
    torch.nn.init.zeros_(mixer.A_log)
    randomise(mixer, std=1.0)
    return mixer.double()


def test_single_steps_equal_the_sequence_with_the_step_size_clamped_at_both_ends(mixer):
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    assert mixer.time_step_limit == (0.5, 0.9)
    with torch.no_grad():
        expected, state = mixer(x), MambaState()
        steps = [mixer(x[:, t : t + 1], state=state) for t in range(7)]
    torch.testing.assert_close(torch.cat(steps, 1), expected, **TOLERANCE)


def test_an_upper_limit_of_the_step_size_has_an_effect(mixer):
    x = torch.randn(1, 5, 16, dtype=torch.float64)
    limited = mixer(x)
    mixer.time_step_limit = (0.5, float("inf"))
    assert (mixer(x) - limited).abs().max() > 1e-3


def test_masked_positions_leave_the_state_untouched(mixer):
    x = torch.randn(2, 6, 16, dtype=torch.float64)
    mask = torch.tensor([[True] * 2 + [False] * 4, [False] * 6])
    start, padded, alone = MambaState(), MambaState(), MambaState()
    with torch.no_grad():
        for state in (start, padded, alone):
            mixer(x, state=state)
        mixer(x, mask, state=padded)
        mixer(x[:, :2], state=alone)
    for name in ("conv_state", "ssm_state"):
        torch.testing.assert_close(getattr(padded, name)[0], getattr(alone, name)[0])
        torch.testing.assert_close(getattr(padded, name)[1], getattr(start, name)[1])


def test_a_single_masked_step_leaves_the_state_exactly_untouched(mixer):
    x = torch.randn(2, 3, 16, dtype=torch.float64)
    state = MambaState()
    with torch.no_grad():
        mixer(x, state=state)
        before = state.conv_state.clone(), state.ssm_state.clone()
        mixer(x[:, :1], torch.tensor([[True], [False]]), state=state)
    assert torch.equal(state.conv_state[1], before[0][1])
    assert torch.equal(state.ssm_state[1], before[1][1])
    assert not torch.equal(state.ssm_state[0], before[1][0])
