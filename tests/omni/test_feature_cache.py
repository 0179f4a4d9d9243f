"""Features named by their source: decoded and encoded once, the same answers, a bounded folder."""

import shutil

import pytest
import torch

from omni.errors import RequestError
from omni.feature_cache import FeatureCache
from omni.media import load_media
from tests.support import tiny_omni

ASSISTANT = tiny_omni.assistant()
SHORT = {"max_new_tokens": 4}


def prompt(seed: int = 0, **options):
    media = [
        tiny_omni.picture(24, 32, seed),
        load_media(tiny_omni.clip(5, 24, 32, seed), fps=4.0),
        load_media(tiny_omni.tone(0.5, seed), sampling_rate=16_000),
    ]
    content = [{"type": "media", "media": medium} for medium in media]
    content.append({"type": "text", "text": "What?"})
    return ASSISTANT.prepare([{"role": "user", "content": content}], **SHORT, **options)


def logits(inputs):
    with torch.no_grad():
        return ASSISTANT.model(**inputs).logits


@pytest.mark.parametrize("reduction", [{}, {"video": "evs(0.5)", "image": "tome(0.3)"}])
def test_kept_features_give_the_logits_of_the_media(tmp_path, reduction) -> None:
    expected = logits(prompt(reduction=reduction))
    for hits, misses in ((0, 3), (3, 0)):
        cache = FeatureCache(tmp_path, ASSISTANT.model)
        found = logits(cache(prompt(reduction=reduction), "files"))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert (cache.hits, cache.misses) == (hits, misses)


def test_what_is_kept_is_not_decoded_again(tmp_path) -> None:
    cache = FeatureCache(tmp_path, ASSISTANT.model)
    logits(cache(prompt(0), "files"))
    other = logits(cache(prompt(1), "files"))  # other pixels under the same name
    assert torch.equal(other, logits(cache(prompt(0), "files")))
    assert not torch.allclose(other, logits(prompt(1)))


def test_another_source_plan_or_tower_has_features_of_its_own(tmp_path) -> None:
    cache = FeatureCache(tmp_path, ASSISTANT.model)
    logits(cache(prompt(), "files"))
    logits(cache(prompt(), "other files"))
    assert (cache.hits, cache.misses) == (0, 6)
    logits(cache(prompt(num_frames=2), "files"))
    assert (cache.hits, cache.misses) == (2, 7)
    changed = FeatureCache(tmp_path, tiny_omni.omni_model(seed=1))
    with torch.no_grad():
        changed.model(**changed(prompt(), "files"))
    assert (changed.hits, changed.misses) == (0, 3)


def test_a_reading_that_is_given_up_leaves_nothing(tmp_path) -> None:
    cache = FeatureCache(tmp_path, ASSISTANT.model)
    video = next(item for item in cache(prompt(), "files").media if item.modality == "video")
    windows = iter(video.windows)
    next(windows)
    windows.close()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    logits(cache(prompt(), "files"))
    assert (cache.hits, cache.misses) == (0, 4)


def test_what_another_run_deletes_meanwhile_is_made_again(tmp_path) -> None:
    sound = load_media(tiny_omni.tone(65.0), sampling_rate=16_000)
    content = [{"type": "media", "media": sound}, {"type": "text", "text": "What?"}]
    inputs = ASSISTANT.prepare([{"role": "user", "content": content}], **SHORT)
    cache = FeatureCache(tmp_path, ASSISTANT.model)
    [item] = cache(inputs, "file").media
    expected = [window.rows for window in item.windows]
    assert len(expected) == 3
    windows = iter(item.windows)
    found = [next(windows).rows]
    for entry in tmp_path.glob("??/*"):
        shutil.rmtree(entry)
    found += [window.rows for window in windows]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close([window.rows for window in item.windows], expected)


def test_what_another_run_is_writing_is_neither_counted_nor_deleted(tmp_path) -> None:
    writing = tmp_path / "00" / "0011.7.7.new"
    writing.mkdir(parents=True)
    (writing / "000000.safetensors").write_bytes(bytes(10**4))
    cache = FeatureCache(tmp_path, ASSISTANT.model, max_bytes=1)
    assert cache.size == 0
    logits(cache(prompt(), "files"))
    assert [path.name for path in tmp_path.glob("??/*")] == [writing.name]


def test_the_folder_stays_within_its_bound_and_the_oldest_goes_first(tmp_path) -> None:
    whole = FeatureCache(tmp_path / "whole", ASSISTANT.model, max_bytes=10**9)
    logits(whole(prompt(), "a"))
    one = whole.size
    assert one == sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    cache = FeatureCache(tmp_path / "bound", ASSISTANT.model, max_bytes=2 * one)
    for source in ("a", "b", "a", "c"):
        logits(cache(prompt(), source))
        kept = sum(path.stat().st_size for path in (tmp_path / "bound").rglob("*.safetensors"))
        assert cache.size == kept <= 2 * one
    again = FeatureCache(tmp_path / "bound", ASSISTANT.model, max_bytes=2 * one)
    assert again.size == 2 * one
    for source in ("a", "c"):
        logits(again(prompt(), source))
    assert (again.hits, again.misses) == (6, 0)


def test_a_reduction_that_asks_the_tower_is_refused(tmp_path) -> None:
    cache = FeatureCache(tmp_path, ASSISTANT.model)
    with pytest.raises(RequestError, match=r"'cls_prune_merge\(0.5\)' asks what the tower attends"):
        cache(prompt(reduction={"image": "cls_prune_merge(0.5)"}), "files")


def test_facts_belong_to_the_medium_and_not_to_the_model_and_torn_ones_are_replaced(tmp_path):
    cache = FeatureCache(tmp_path, ASSISTANT.model)
    assert cache.facts("medium") is None
    cache.keep_facts("medium", {"size": [2, 3]})
    other = FeatureCache(tmp_path, tiny_omni.omni_model(seed=1))
    assert other.facts("medium") == {"size": [2, 3]}
    assert other.facts("another") is None
    [entry] = tmp_path.glob("??/*")
    entry.write_text("")
    assert cache.facts("medium") is None
    cache.keep_facts("medium", {"size": [4, 5]})
    assert cache.facts("medium") == {"size": [4, 5]}
