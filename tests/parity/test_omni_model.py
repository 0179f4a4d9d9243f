"""The whole model against transformers, on the same tensors and the same random weights."""

import copy
import warnings
from itertools import chain
from types import SimpleNamespace

import pytest
import torch

from omni.errors import RequestError
from omni.tensors import media_from_tensors
from tests.support import tiny_omni

# Float32 on both sides; the scan and the experts add in another order. Measured worst: 5e-7.
SAME_LOGITS = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def models() -> SimpleNamespace:
    ours = tiny_omni.omni_model()
    return SimpleNamespace(ours=ours, theirs=tiny_omni.reference_model(ours))


def text(*shape: int) -> torch.Tensor:
    return torch.randint(30, 280, shape)


def run(token: int, count: int) -> list[int]:
    return [21, *[token] * count, 22]


def check(models: SimpleNamespace, **tensors: torch.Tensor) -> None:
    with torch.no_grad():
        ours, theirs = models.ours(**tensors).logits, models.theirs(**tensors).logits
    torch.testing.assert_close(ours, theirs, **SAME_LOGITS)


def video_ids(tubelets: int, tokens: int) -> torch.Tensor:
    blocks = [[60 + t, *run(18, tokens)] for t in range(tubelets)]
    return torch.tensor([[40, 41, *chain.from_iterable(blocks), 50]])


def tubelets(videos: torch.Tensor) -> torch.Tensor:
    """Frames `(videos, frames, ...)` as transformers packs them, the last one repeated if odd."""
    if videos.shape[1] % 2:
        videos = torch.cat([videos, videos[:, -1:]], dim=1)
    return videos.unflatten(1, (-1, 2)).flatten(2, 3)


def test_parameter_names_and_shapes_are_the_same(models):
    ours, theirs = models.ours.state_dict(), models.theirs.state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_text_logits_are_equal(models):
    check(models, input_ids=text(2, 37))


def test_images_of_several_sizes_give_equal_logits(models):
    grids = torch.tensor([[4, 6], [8, 2], [2, 2]])
    runs = [run(18, h * w // 4) for h, w in grids.tolist()]
    ids = torch.tensor([[40, *runs[0], 41, *runs[1], *runs[2], 42, 43]])
    check(models, input_ids=ids, pixel_values=torch.randn(44, 48), image_grid_hw=grids)


def test_images_in_a_batch_give_equal_logits(models):
    grids = torch.tensor([[4, 4], [4, 4]])
    ids = torch.tensor([[40, *run(18, 4), 41], [50, *run(18, 4), 51]])
    check(models, input_ids=ids, pixel_values=torch.randn(32, 48), image_grid_hw=grids)


@pytest.mark.parametrize("lengths", [(37, 37), (37, 19), (9, 61)])
def test_audio_of_equal_and_unequal_length_gives_equal_logits(models, lengths):
    frames = max(lengths) + 1
    features = torch.randn(2, frames, 8)
    mask = torch.arange(frames) < torch.tensor(lengths)[:, None]
    features = features * mask[..., None]  # the extractor zeroes invalid frames
    counts = [-(-(n + 1) // 8) for n in lengths]
    rows = [[40, 28, *[27] * n, 29] for n in counts]
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[50] * (longest - len(row))] for row in rows])
    check(models, input_ids=ids, input_features=features, input_features_mask=mask)


def test_features_that_are_normalised_otherwise_than_the_checkpoint_wants_are_told(models):
    config = copy.deepcopy(models.ours.config)
    ids, features = torch.tensor([[40, 28, 27, 27, 29]]), torch.randn(1, 16, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        media_from_tensors(config, ids, input_features=features)
    config.audio_normalize = "all_features"
    with pytest.warns(UserWarning, match="normalised over 'all_features'"):
        media_from_tensors(config, ids, input_features=features)


@pytest.mark.parametrize("frames", [1, 4, 5])
@pytest.mark.parametrize("size", [(16, 16), (16, 24), (24, 8)])
def test_videos_give_equal_logits(models, frames, size):
    pixels = torch.randn(2, frames, 3, *size)
    tokens = size[0] // 4 * size[1] // 4 // 4
    one = video_ids(-(-frames // 2), tokens)
    check(models, input_ids=one, pixel_values_videos=tubelets(pixels[:1]))
    check(
        models, input_ids=torch.cat([one, one + (one > 30)]), pixel_values_videos=tubelets(pixels)
    )


@pytest.mark.parametrize("frames", [1, 4, 5])
def test_frames_and_tubelets_of_a_video_give_the_same(models, frames):
    pixels, ids = torch.randn(frames, 3, 16, 16), video_ids(-(-frames // 2), 4)
    with torch.no_grad():
        by_frames = models.ours(input_ids=ids, pixel_values_videos=pixels).logits
        packed = models.ours(input_ids=ids, pixel_values_videos=tubelets(pixels[None])).logits
    torch.testing.assert_close(by_frames, packed, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(2, 4, 16, 16), (1, 2, 3, 16, 16), (2, 16, 16)])
def test_videos_of_another_shape_are_refused(models, shape):
    with pytest.raises(RequestError, match=r"expected \(videos, tubelets, 6, height, width\)"):
        models.ours(input_ids=video_ids(1, 4), pixel_values_videos=torch.randn(*shape))


def test_video_with_audio_gives_equal_logits(models):
    ids = torch.cat([video_ids(2, 4), torch.tensor([[28, *[27] * 5, 29, 50]])], dim=1)
    videos = tubelets(torch.randn(1, 4, 3, 16, 16))
    check(
        models,
        input_ids=ids,
        pixel_values_videos=videos,
        input_features=torch.randn(1, 37, 8),
    )


def test_left_padding_gives_equal_logits_at_real_positions(models):
    ids, mask = text(2, 20), torch.ones(2, 20, dtype=torch.long)
    mask[0, :7] = 0
    with torch.no_grad():
        ours = models.ours(input_ids=ids, attention_mask=mask).logits
        theirs = models.theirs(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], **SAME_LOGITS)


def test_loss_and_gradients_are_equal(models):
    ids = text(2, 24)
    labels = ids.clone()
    labels[:, :9] = -100
    gradients = []
    for model in (models.ours, models.theirs):
        model.zero_grad()
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        gradients.append((loss, model.language_model.model.layers[0].mixer.in_proj.weight.grad))
    torch.testing.assert_close(gradients[0][0], gradients[1][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients[0][1], gradients[1][1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("beams", [1, 3])
def test_generate_of_transformers_gives_the_same_tokens(models, beams):
    grids = torch.tensor([[4, 6], [4, 6]])
    ids = torch.tensor([[0, 0, *run(18, 6), 41], [50, 60, *run(18, 6), 51]])
    arguments = {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "pixel_values": torch.randn(48, 48),
        "image_grid_hw": grids,
        "max_new_tokens": 6,
        "do_sample": False,
        "num_beams": beams,
    }
    if beams == 1:
        ours, theirs = models.ours.generate(**arguments), models.theirs.generate(**arguments)
        assert ours.tolist() == theirs.tolist()
        return
    # With beams transformers repeats packed rows wrongly: each row is compared with itself alone.
    ours = models.ours.generate(**arguments)
    for i in range(2):
        alone = arguments | {
            "input_ids": ids[i : i + 1],
            "attention_mask": (ids != 0)[i : i + 1],
            "pixel_values": arguments["pixel_values"][24 * i : 24 * (i + 1)],
            "image_grid_hw": grids[i : i + 1],
        }
        single = models.ours.generate(**alone)[0].tolist()
        assert ours[i].tolist()[: len(single)] == single
        assert set(ours[i].tolist()[len(single) :]) <= {0, 11}


def test_our_save_loads_in_transformers_and_back(models, tmp_path):
    from transformers.models.nemotron_h_omni.modeling_nemotron_h_omni import (
        NemotronH_Omni_Reasoning_V3,
    )

    models.ours.save_pretrained(tmp_path / "ours")
    theirs = NemotronH_Omni_Reasoning_V3.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    again = type(models.ours).from_pretrained(tmp_path / "theirs")
    ids = text(1, 12)
    with torch.no_grad():
        expected = models.ours(input_ids=ids).logits
        torch.testing.assert_close(theirs.eval()(input_ids=ids).logits, expected, **SAME_LOGITS)
        torch.testing.assert_close(again(input_ids=ids).logits, expected, rtol=0, atol=0)
