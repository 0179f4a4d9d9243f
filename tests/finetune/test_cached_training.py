"""Cached features train as the media themselves do, and every setting that matters has its own."""

from dataclasses import replace

import pytest
import torch

from finetune.batches import Batches
from finetune.data import open_dataset
from omni.errors import RequestError
from omni.feature_cache import FeatureCache
from tests.finetune.test_loop import SETTINGS, conversation, losses, run
from tests.support import tiny_omni
from tests.support.rows import write_jsonl, write_media

KINDS = [("image", "a.png"), ("video", "v.mp4"), ("audio", "s.wav"), ("image", "b.png")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_media(tmp_path_factory.mktemp("data"))
    return write_jsonl(folder / "data.jsonl", [conversation(*k, i) for i, k in enumerate(KINDS)])


def read_all(data, cache, settings=SETTINGS):
    processor = tiny_omni.assistant().processor
    batches = Batches(open_dataset(data), processor, settings, cache=cache)
    return [batches.read(i) for i in range(len(KINDS))]


@torch.no_grad()
def test_hidden_states_give_the_loss_of_pixels_and_sound(data, tmp_path):
    model = tiny_omni.omni_model().requires_grad_(False)
    settings = replace(SETTINGS, reduction={"video": "evs(0.5)", "image": "tome(0.3)|merge(0.5)"})
    cached = read_all(data, FeatureCache(tmp_path, model), settings)
    for row, plain in zip(cached, read_all(data, None, settings), strict=True):
        assert all(window.is_hidden for item in row.media for window in item.windows)
        expected = model(**plain).loss
        torch.testing.assert_close(model(**row).loss, expected, rtol=1e-5, atol=1e-6)


def test_a_run_with_the_cache_has_the_losses_of_one_without(data, tmp_path):
    settings = replace(SETTINGS, preset="lora-all+projectors")
    run(data, tmp_path / "plain", settings)
    cached = replace(settings, cache_features=str(tmp_path / "features"))
    run(data, tmp_path / "cached", cached)
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)


def test_media_are_encoded_once_and_again_when_something_that_matters_changes(data, tmp_path):
    model = tiny_omni.omni_model().requires_grad_(False)
    first = FeatureCache(tmp_path, model)
    read_all(data, first)
    assert (first.hits, first.misses) == (0, 4)
    again = FeatureCache(tmp_path, model)
    read_all(data, again)
    assert (again.hits, again.misses) == (4, 0)

    merged = FeatureCache(tmp_path, model)  # merging inside the tower changes what it gives
    read_all(data, merged, replace(SETTINGS, reduction={"image": "tome(0.5)"}))
    assert (merged.hits, merged.misses) == (2, 2)
    reduced = FeatureCache(tmp_path, model)  # reduction behind the tower does not
    read_all(data, reduced, replace(SETTINGS, reduction={"image": "merge(0.5)"}))
    assert (reduced.hits, reduced.misses) == (4, 0)
    other = FeatureCache(tmp_path, tiny_omni.omni_model(seed=1).requires_grad_(False))
    read_all(data, other)
    assert (other.hits, other.misses) == (0, 4)


def test_trained_towers_and_questions_to_the_tower_are_refused(data, tmp_path):
    with pytest.raises(RequestError, match="while the towers are trained"):
        run(data, tmp_path, replace(SETTINGS, preset="towers", cache_features=str(tmp_path / "f")))
    model = tiny_omni.omni_model().requires_grad_(False)
    settings = replace(SETTINGS, reduction={"image": "cls_prune_merge(0.5)"})
    with pytest.raises(RequestError, match="asks what the tower attends to"):
        read_all(data, FeatureCache(tmp_path, model), settings)
