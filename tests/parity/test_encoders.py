"""Encoders against transformers, on tiny random weights and made-up media."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import ParakeetEncoderConfig, ParakeetFeatureExtractor, RadioConfig
from transformers.models.nemotron_h_omni.image_processing_nemotron_h_omni import (
    NemotronH_Omni_Reasoning_V3ImageProcessor as ImageProcessor,
)
from transformers.models.nemotron_h_omni.image_processing_nemotron_h_omni import (
    get_patch_grid_size,
)
from transformers.models.nemotron_h_omni.video_processing_nemotron_h_omni import (
    NemotronH_Omni_Reasoning_V3VideoProcessor as VideoProcessor,
)
from transformers.models.parakeet.modeling_parakeet import ParakeetEncoder
from transformers.models.radio.modeling_radio import RadioModel

from encoders import (
    LogMel,
    ParakeetTower,
    RadioTower,
    choose_image_grid,
    choose_video_grid,
    init_small_audio_tower,
    num_image_tokens,
    num_video_tokens,
    patchify,
    resize_and_patchify,
    subsampled_length,
)
from encoders.vision.preprocessing import IMAGE_MEAN, IMAGE_STD

# Same kernels in the same order, but 1/255 and the statistics are applied in another one.
SAME_PIXELS = {"rtol": 0, "atol": 1e-5}

pixels = st.integers(1, 10_000)
small = st.integers(1, 40)
small_sizes = st.lists(st.tuples(small, small), min_size=1, max_size=3)


# ---------------------------------------------------------------- images and video


@given(pixels, pixels, st.sampled_from([16, 256, 1024]), st.sampled_from([64, 1024, 13312]))
def test_image_grids_equal(height, width, min_patches, max_patches):
    try:
        expected = get_patch_grid_size(height, width, 16, 2, min_patches, max_patches)
    except ZeroDivisionError:
        assume(False)  # a strip that the reference cannot take
    ours = choose_image_grid(height, width, min_patches=min_patches, max_patches=max_patches)
    assert ours == expected or expected[0] * expected[1] == 0


@given(pixels, pixels, st.sampled_from([16, 1000, 1024]), st.booleans())
def test_video_grids_equal(height, width, target, keep_aspect):
    processor = VideoProcessor(
        video_target_num_patches=target, video_maintain_aspect_ratio=keep_aspect
    )
    columns, rows = processor._compute_target_patches(height, width)
    ours = choose_video_grid(height, width, target_patches=target, keep_aspect=keep_aspect)
    assert ours == (rows, columns)


@settings(max_examples=40)
@given(small_sizes, st.integers(0, 1000))
def test_image_rows_equal(sizes, seed):
    processor = ImageProcessor(
        patch_size=2, min_num_patches=16, max_num_patches=64, max_model_len=256
    )
    generator = torch.Generator().manual_seed(seed)
    images = [random_pixels(generator, 1, height, width) for height, width in sizes]
    expected = processor([image[0].permute(2, 0, 1) for image in images], return_tensors="pt")
    grids = [
        choose_image_grid(*size, patch_size=2, min_patches=16, max_patches=64) for size in sizes
    ]
    rows = [
        resize_and_patchify(image, grid, patch_size=2)
        for image, grid in zip(images, grids, strict=True)
    ]
    assert grids == [tuple(grid) for grid in expected["image_grid_hw"].tolist()]
    torch.testing.assert_close(torch.cat(rows), expected["pixel_values"], **SAME_PIXELS)


def test_image_rows_equal_at_released_settings():
    generator = torch.Generator().manual_seed(0)
    image = random_pixels(generator, 1, 360, 640)
    expected = ImageProcessor()([image[0].permute(2, 0, 1)], return_tensors="pt")
    grid = choose_image_grid(360, 640)
    rows = resize_and_patchify(image, grid)
    assert expected["image_grid_hw"].tolist() == [list(grid)]
    assert len(expected["pixel_values"]) == 4 * num_image_tokens(grid)
    torch.testing.assert_close(rows, expected["pixel_values"], **SAME_PIXELS)


@settings(max_examples=40)
@given(st.integers(1, 4), small, small, st.integers(0, 1000))
def test_video_rows_equal(num_frames, height, width, seed):
    processor = VideoProcessor(
        norm_mean=list(IMAGE_MEAN),
        norm_std=list(IMAGE_STD),
        patch_size=2,
        video_target_num_patches=16,
    )
    frames = random_pixels(torch.Generator().manual_seed(seed), num_frames, height, width)
    expected = processor(frames.permute(0, 3, 1, 2), return_tensors="pt", do_sample_frames=False)
    grid = choose_video_grid(height, width, target_patches=16)
    rows = resize_and_patchify(frames, grid, patch_size=2)
    (tubelets,) = expected["pixel_values_videos"]  # (tubelets, 2 * 3, height, width)
    theirs = tubelets.unflatten(1, (2, 3)).flatten(0, 1)
    torch.testing.assert_close(rows, patchify(theirs[:num_frames], 2).flatten(0, 1), **SAME_PIXELS)
    assert theirs.shape[2:] == twice(grid)
    assert num_video_tokens(num_frames, grid) == len(tubelets) * num_image_tokens(grid)


def random_pixels(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=generator)


def twice(grid: tuple[int, int]) -> tuple[int, int]:
    return 2 * grid[0], 2 * grid[1]


# ---------------------------------------------------------------- C-RADIO


@pytest.fixture
def radio() -> tuple[RadioModel, RadioTower]:
    config = RadioConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        patch_size=2,
        max_img_size=16,
        video_temporal_patch_size=2,
        initializer_range=0.2,
    )
    model, tower = RadioModel(config).eval(), RadioTower(config).eval()
    model.make_preprocessor_external()
    tower.load_state_dict(model.state_dict())
    return model.requires_grad_(False), tower.requires_grad_(False)


@pytest.mark.parametrize("grids", [[(4, 6), (2, 8), (10, 12)], [(4, 6)] * 3, [(4, 6)]])
def test_packed_images_equal(radio, grids):
    model, tower = radio
    sizes = torch.tensor(grids)
    patches = torch.randn(int(sizes.prod(-1).sum()), 12)
    expected = model(patches, image_grid_hw=sizes).features
    ours = tower.encode_images(patches, sizes)
    # 0 when packed; images of one grid run as a batch here, in other matrix sizes.
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_tubelets_equal(radio):
    model, tower = radio
    tubelets = torch.randn(3, 6, 8, 12)  # (tubelets, frame and channel, height, width)
    expected = model(tubelets).features.flatten(0, 1)
    ours = tower.encode_video(patchify(tubelets, 2).flatten(0, 1), (4, 6))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


# ---------------------------------------------------------------- Parakeet


def noise(samples: int, loudness: float = 0.1) -> torch.Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(samples)) * loudness


def speech_like(samples: int) -> torch.Tensor:
    """A gliding voice with harmonics, in syllables."""
    time = torch.arange(samples) / 16_000
    pitch = 2 * torch.pi * (120 * time + 30 * time**2)
    voice = sum(torch.sin(harmonic * pitch) / harmonic for harmonic in range(1, 20))
    return 0.2 * voice * torch.sin(2 * torch.pi * 3 * time).clamp(min=0)


WAVEFORMS = {
    "noise": noise(48_000),
    "loud noise": noise(16_037, 0.7),
    "speech-like": speech_like(64_000),
    "silence": torch.zeros(20_480),
    "silence, then noise": torch.cat([torch.zeros(8_000), noise(8_000)]),
    "constant": torch.full((16_000,), 0.3),
    "shortest clip": noise(1_600),
    "very short": noise(700),
    "very quiet": noise(16_000, 1e-5),
}


@pytest.mark.parametrize("num_mel_bins", [8, 80, 128])
@pytest.mark.parametrize("name", WAVEFORMS)
def test_log_mel_features_equal(name, num_mel_bins):
    waveform = WAVEFORMS[name]
    expected = extract([waveform], num_mel_bins)["input_features"][0]
    # Measured: 0; another transform library may round the spectrum anew.
    torch.testing.assert_close(LogMel(num_mel_bins)(waveform), expected, rtol=0, atol=1e-4)


@settings(max_examples=20)
@given(st.lists(st.integers(320, 20_000), min_size=1, max_size=4))
def test_log_mel_features_of_unequal_clips_equal(lengths):
    waveforms = [noise(length) for length in lengths]
    padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    expected = extract(waveforms, 32)
    features, num_frames = LogMel(32).batch(padded, torch.tensor(lengths))
    assert num_frames.tolist() == expected["attention_mask"].sum(-1).tolist()
    torch.testing.assert_close(features, expected["input_features"], rtol=0, atol=1e-4)


def extract(waveforms: list[torch.Tensor], num_mel_bins: int):
    extractor = ParakeetFeatureExtractor(feature_size=num_mel_bins)
    arrays = [np.asarray(waveform) for waveform in waveforms]
    return extractor(arrays, sampling_rate=16_000, return_tensors="pt")


@pytest.mark.parametrize("lengths", [[100], [100, 100], [100, 64, 33, 8]])
def test_clips_equal_without_the_token_that_stands_for_padding(lengths):
    config = ParakeetEncoderConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        num_mel_bins=16,
        subsampling_conv_channels=8,
        convolution_bias=False,
        attention_bias=False,
        scale_input=False,
    )
    model, tower = ParakeetEncoder(config).eval(), ParakeetTower(config).eval()
    init_small_audio_tower(model)
    tower.load_state_dict(model.state_dict())
    # As the front end gives them: one more frame than the longest clip has valid ones.
    mask = torch.arange(101) < torch.tensor(lengths)[:, None]
    features = torch.randn(len(lengths), 101, 16) * mask[..., None]
    with torch.no_grad():
        expected = model(features, attention_mask=mask).last_hidden_state
        ours = tower.encode_clip(features, torch.tensor(lengths))
    for index, length in enumerate(lengths):
        tokens = subsampled_length(length)
        torch.testing.assert_close(
            ours[index, :tokens], expected[index, :tokens], rtol=0, atol=1e-5
        )
