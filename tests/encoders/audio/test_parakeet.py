"""The Parakeet tower over clips of known length."""

import pytest
import torch
from transformers import ParakeetEncoderConfig
from transformers.models.parakeet.modeling_parakeet import ParakeetEncoder

from encoders.audio.features import LogMel, num_audio_tokens, subsampled_length
from encoders.audio.parakeet import ParakeetTower, deterministic_config, init_small_audio_tower


def build_config(**changes) -> ParakeetEncoderConfig:
    values = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "num_mel_bins": 16,
        "subsampling_conv_channels": 8,
        "conv_kernel_size": 9,
        "convolution_bias": False,
        "attention_bias": False,
        "scale_input": False,
    }
    return ParakeetEncoderConfig(**(values | changes))


@pytest.fixture
def tower() -> ParakeetTower:
    """Weights of useful size: under transformers' initialisation the input is lost in noise."""
    tower = ParakeetTower(build_config()).eval().requires_grad_(False)
    init_small_audio_tower(tower)
    return tower


def test_a_state_dict_of_transformers_loads_strictly(tower):
    model = ParakeetEncoder(build_config())
    tower.load_state_dict(model.state_dict(), strict=True)
    assert tower.state_dict().keys() == model.state_dict().keys()


def test_the_released_size_has_the_published_number_of_values():
    biases = {"convolution_bias": False, "attention_bias": False}
    with torch.device("meta"):
        tower = ParakeetTower(ParakeetEncoderConfig(num_mel_bins=128, **biases))
    # Published: parameters without the statistics that batch norm gathers.
    assert sum(p.numel() for p in tower.parameters()) == 608_879_616


def test_clips_of_a_batch_are_as_if_alone_whatever_they_are_padded_with(tower):
    features = torch.randn(5, 101, 16)
    lengths = torch.tensor([100, 97, 64, 9, 1])
    together = tower.encode_clip(features, lengths)
    assert together.shape == (5, 13, 32)
    for index, length in enumerate(lengths.tolist()):
        alone = tower.encode_clip(features[index : index + 1, :length], lengths[index : index + 1])
        tokens = subsampled_length(length)
        assert alone.shape[1] == tokens
        # Sums over padded rows may be ordered anew; measured 2e-6.
        torch.testing.assert_close(together[index, :tokens], alone[0], rtol=0, atol=2e-5)
        assert torch.count_nonzero(together[index, tokens:]) == 0


@pytest.mark.parametrize("samples", [1_600, 8_000, 16_000, 20_480, 33_333])
def test_a_clip_makes_as_many_tokens_as_were_counted(tower, samples):
    features, num_frames = LogMel(16).batch(torch.randn(1, samples), torch.tensor([samples]))
    hidden = tower.encode_clip(features, num_frames)
    assert hidden.shape == (1, num_audio_tokens(samples), 32)


def test_no_clips_give_no_tokens(tower):
    assert tower.encode_clip(torch.zeros(0, 40, 16), torch.zeros(0).long()).shape == (0, 0, 32)


def test_features_are_cast_to_the_dtype_of_the_tower(tower):
    tower.to(torch.bfloat16)
    hidden = tower.encode_clip(torch.randn(2, 40, 16), torch.tensor([40, 20]))
    assert hidden.dtype == torch.bfloat16
    assert torch.isfinite(hidden).all()


def test_gradients_are_finite_with_padded_clips():
    tower = ParakeetTower(deterministic_config(build_config()))
    tower.encode_clip(torch.randn(2, 40, 16), torch.tensor([40, 10])).square().sum().backward()
    gradients = [parameter.grad for parameter in tower.parameters()]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("lengths", [[0, 5], [5, 11]])
def test_lengths_outside_the_batch_are_refused(tower, lengths):
    with pytest.raises(ValueError, match=f"{lengths[0]} to {lengths[1]} frames.*1...10"):
        tower.encode_clip(torch.zeros(2, 10, 16), torch.tensor(lengths))


def test_a_front_end_with_other_mel_bins_is_refused(tower):
    with pytest.raises(ValueError, match="8 mel bins, but this tower takes 16"):
        tower.encode_clip(torch.zeros(1, 10, 8), torch.tensor([10]))


def test_a_deterministic_config_makes_training_mode_repeatable():
    config = build_config(dropout_positions=0.1)
    calm = deterministic_config(config)
    assert config.layerdrop == config.dropout == 0.1  # the given config is left alone
    features, lengths = torch.randn(1, 80, 16), torch.tensor([80])
    tower = ParakeetTower(calm).train()
    assert torch.equal(tower.encode_clip(features, lengths), tower.encode_clip(features, lengths))


def test_fan_in_initialisation_keeps_the_signal_that_the_default_loses():
    features = torch.randn(4, 80, 16)
    default, scaled = ParakeetTower(build_config()), ParakeetTower(build_config())
    init_small_audio_tower(scaled)
    assert default.subsampling(features).std() < 1e-4
    assert 0.2 < scaled.subsampling(features).std() < 5
