"""Everything composes: videos, pictures and recordings in one batch, reduced, labelled, packed."""

import pytest
import torch

from omni import encoding
from omni.inputs import collate, pack
from omni.options import MediaOptions
from tests.support import tiny_omni

EVS = MediaOptions(fps=4.0, reduction={"video": "evs(0.5)"})
QUESTION = "What is it?"
ANSWER = "yes!"  # as many tokens for each, so that the batch's mean is the mean of the means


@pytest.fixture(scope="module")
def model():
    return tiny_omni.omni_model()


@pytest.fixture(scope="module")
def processor(model):
    return tiny_omni.omni_processor(model.config)


@pytest.fixture(scope="module")
def samples(processor):
    media = [
        processor.load_media(tiny_omni.clip(16, 36, 64, seed=1), fps=8.0),  # 16:9
        processor.load_media(tiny_omni.clip(12, 64, 36, seed=2), fps=8.0),  # 9:16
        processor.load_media(tiny_omni.picture(48, 40)),
        processor.load_media(tiny_omni.tone(1.3), sampling_rate=16_000),
    ]
    markers = ["<video>", "<video>", "<image>", "<so_embedding>"]
    return [
        sample(processor, f"{marker}\n{QUESTION}", medium)
        for marker, medium in zip(markers, media, strict=True)
    ]


def sample(processor, content: str, *media, options: MediaOptions = EVS):
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": ANSWER}]
    text = processor.render(turns, thinking=False, add_generation_prompt=False)
    return processor.from_text(text, media, options=options, with_labels=True)


def test_the_loss_of_a_mixed_reduced_batch_is_the_mean_of_the_losses_alone(model, samples):
    alone = torch.stack([model(**each).loss for each in samples])
    for side in ("left", "right"):
        batch = collate(samples, pad_token_id=0, padding_side=side)
        torch.testing.assert_close(model(**batch).loss, alone.mean(), rtol=1e-5, atol=1e-6)


def test_packed_samples_have_the_loss_of_separate_ones(model, samples):
    alone = torch.stack([model(**each).loss for each in samples])
    torch.testing.assert_close(model(**pack(samples)).loss, alone.mean(), rtol=1e-5, atol=1e-6)


def test_packed_rows_may_be_packed_again(samples):
    once, again = pack(samples), pack([pack(samples[:1]), pack(samples[1:3]), samples[3]])
    assert torch.equal(again.segment_ids, once.segment_ids)
    assert torch.equal(again.labels, once.labels)
    assert torch.equal(again.input_ids, once.input_ids)


def test_packed_samples_have_the_gradients_of_separate_ones(model, samples):
    def gradients(*batches):
        model.zero_grad()
        for batch in batches:
            (model(**batch).loss / len(batches)).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    together, apart = gradients(pack(samples)), gradients(*samples)
    model.zero_grad()
    assert together.keys() >= apart.keys()
    for name, gradient in apart.items():
        torch.testing.assert_close(together[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_embeddings_do_not_depend_on_how_many_windows_share_a_pass(model, samples, monkeypatch):
    media = [item for sample in samples + samples for item in sample.media]
    with torch.no_grad():
        together = model.encode(media)
        monkeypatch.setattr(encoding, "MAX_ROWS_PER_CPU_PASS", 1)
        alone = model.encode(media)
    for (a, _), (b, _) in zip(alone, together, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_gradients_reach_only_the_tokens_that_reduction_kept(model, samples):
    video = samples[0]
    kept = {}

    def watch(module, arguments, output):
        output.retain_grad()
        kept["features"] = output

    handle = model.multi_modal_projector.register_forward_hook(watch)
    model(**video).loss.backward()
    handle.remove()
    [(_, layout)] = model.encode(video.media)
    has_gradient = kept["features"].grad.abs().sum(-1) > 0
    expected = torch.zeros(len(has_gradient), dtype=torch.bool)
    expected[layout.cells] = True
    model.zero_grad()
    assert not expected.all()
    assert torch.equal(has_gradient, expected)


def test_only_what_the_assistant_says_is_labelled(processor, samples):
    for each in samples:
        labelled = each.labels[each.labels != -100]
        assert processor.tokenizer.decode(labelled) == ANSWER + "<|im_end|>"


def test_reduction_lays_the_kept_tokens_between_the_labels_of_their_tubelets(
    model, processor, samples
):
    video = samples[0]
    _, ids, [layout] = model.embed(video.input_ids, video.media)
    assert ids.shape == video.input_ids.shape
    text = processor.tokenizer.decode(ids[0])
    blocks = text.split("<img>")[1:]
    assert [block.count("<image>") for block in blocks] == list(layout.tokens_per_step)
    assert all("</img>\nFrame " in block for block in blocks[:-1])


@pytest.mark.parametrize("spec", ["identity", "evs(0.9)", "uniform(0.4)", "random(0.3)"])
def test_planned_tokens_are_used_tokens_for_every_reducer(model, processor, spec):
    options = MediaOptions(fps=8.0, reduction={"video": spec})
    video = processor.load_media(tiny_omni.clip(9, 40, 56), fps=8.0)
    inputs = processor.from_text("<video>", [video], options=options)
    [(features, layout)] = model.encode(inputs.media)
    assert len(features) == inputs.media[0].num_tokens == layout.shape.num_tokens
    _, ids, _ = model.embed(inputs.input_ids, inputs.media)
    assert int((ids == 18).sum()) == len(features)


def test_frozen_towers_stay_deterministic_in_training_mode(model, samples):
    model.audio_tower.requires_grad_(False)
    model.vision_model.requires_grad_(False)
    model.train()
    try:
        assert not model.audio_tower.training
        assert model.language_model.training
        assert torch.equal(model(**samples[3]).loss, model(**samples[3]).loss)
    finally:
        model.requires_grad_(True)
        model.eval()
