"""Loudness per token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders import token_energy


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(1, 6), st.floats(1e-3, 1.0))
def test_each_value_is_the_mean_power_of_its_stretch(samples: int, tokens: int, gain: float):
    waveform = gain * torch.randn(samples, generator=torch.Generator().manual_seed(samples))
    found = token_energy(waveform, tokens)
    assert len(found) == tokens
    for i, value in enumerate(found.tolist()):
        stretch = waveform[i * 1280 : (i + 1) * 1280].tolist()
        power = sum(x * x for x in stretch) / 1280
        expected = 10 * torch.tensor(max(power, 1e-12), dtype=torch.float64).log10().item()
        assert value == pytest.approx(expected, abs=1e-3)


def test_full_scale_is_0_and_silence_is_the_floor():
    waveform = torch.cat([torch.ones(1280), torch.zeros(1280)])
    assert token_energy(waveform, 3).tolist() == [0.0, -120.0, -120.0]
