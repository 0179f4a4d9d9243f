"""`tome` in a request: merged inside the tower, counted as before, every item on its own."""

import pytest
import torch

from omni.errors import RequestError
from omni.inputs import collate
from omni.options import MediaOptions
from tests.support import tiny_omni


@pytest.fixture(scope="module")
def assistant():
    return tiny_omni.assistant()


def sample(assistant, seed: int, spec: str):
    medium = assistant.processor.load_media(tiny_omni.picture(64, 64, seed))
    turns = [{"role": "user", "content": [{"type": "image", "image": medium}]}]
    turns.append({"role": "assistant", "content": "A thing."})
    options = MediaOptions(reduction={"image": spec})
    return assistant.processor(turns, options=options, with_labels=True)


def test_requests_with_and_without_merging_share_a_batch(assistant):
    specs = ["identity", "tome(0.5)", "tome(0.7)|uniform(0.5)", "tome(0.5)"]
    samples = [sample(assistant, i, spec) for i, spec in enumerate(specs)]
    alone = torch.stack([assistant.model(**each).loss for each in samples])
    batch = collate(samples, pad_token_id=0, padding_side="right")
    torch.testing.assert_close(assistant.model(**batch).loss, alone.mean(), rtol=1e-5, atol=1e-6)


def test_it_changes_the_features_and_not_their_number(assistant):
    plain, merged = (sample(assistant, 0, spec) for spec in ("identity", "tome(0.5)"))
    assert merged.num_tokens == plain.num_tokens
    (before, _), (after, _) = (assistant.model.encode(s.media)[0] for s in (plain, merged))
    assert before.shape == after.shape
    assert not torch.allclose(before, after)


def test_audio_is_refused(assistant):
    medium = assistant.processor.load_media(tiny_omni.tone(1.0), sampling_rate=16_000)
    turns = [{"role": "user", "content": [{"type": "audio", "audio": medium}]}]
    with pytest.raises(RequestError, match="tome merges patches inside the vision tower"):
        assistant.processor(turns, options=MediaOptions(reduction={"audio": "tome(0.5)"}))


def test_twice_is_refused(assistant):
    with pytest.raises(RequestError, match="has tome twice"):
        sample(assistant, 0, "tome(0.5)|tome(0.5)")
