"""Each known defect of the reference implementations that users meet, and that we do it right.

The numbers are those of the published list: B4-B7, B9-B12, B15-B18. Where transformers raises, the
test shows that it still does (so that a fix there is noticed) and that the same request works here.
transformers 5.24 runs videos (B4) and packs their frames itself; what it does with them is compared
in `test_omni_model.py`.
"""

import pytest
import torch

from omni.inputs import collate
from omni.options import MediaOptions
from tests.support import tiny_omni

EVS = MediaOptions(fps=4.0, reduction={"video": "evs(0.5)"})
WIDE, TALL = (32, 56), (56, 32)


@pytest.fixture(scope="module")
def model():
    return tiny_omni.omni_model()


@pytest.fixture(scope="module")
def processor(model):
    return tiny_omni.omni_processor(model.config)


def load(processor, kind: str, *shape: int, seed: int = 0):
    if kind == "video":
        return processor.load_media(tiny_omni.clip(*shape, seed=seed), kind="video", fps=8.0)
    if kind == "image":
        return processor.load_media(tiny_omni.picture(*shape, seed=seed), kind="image")
    return processor.load_media(
        tiny_omni.tone(shape[0] / 1000, seed), kind="audio", sampling_rate=16_000
    )


def request(processor, text: str, *media, options: MediaOptions = EVS):
    return processor.from_text(text, media, options=options)


def logits_of(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def test_b4_any_video_runs(model):
    ids, frames = torch.tensor([[21, 18, 18, 18, 18, 22]]), torch.randn(2, 3, 16, 16)
    assert model(input_ids=ids, pixel_values_videos=frames).logits.shape == (1, 6, 286)
    generated = model.generate(input_ids=ids, pixel_values_videos=frames, max_new_tokens=2)
    assert generated.shape[1] > 6


@pytest.mark.parametrize("size", [WIDE, TALL])
def test_b5_pruning_works_on_grids_that_are_not_square(model, processor, size):
    inputs = request(processor, "<video>", load(processor, "video", 16, *size))
    [(features, layout)] = model.encode(inputs.media)
    _, h, w = layout.shape.grid
    assert h != w
    assert len(features) == inputs.media[0].num_tokens
    assert torch.isfinite(logits_of(model, inputs)).all()


def test_b6_pruning_trains_with_labels(model, processor):
    reference = tiny_omni.reference_model(model, video_pruning_rate=0.5)
    ids = torch.tensor([[21, *[18] * 8, 22, 40]])
    with pytest.raises((ValueError, RuntimeError)):
        reference(input_ids=ids, labels=ids, pixel_values_videos=torch.randn(1, 2, 6, 16, 16))

    messages = [
        {"role": "user", "content": "<video>What?"},
        {"role": "assistant", "content": "A clip."},
    ]
    text = processor.render(messages, thinking=False, add_generation_prompt=False)
    video = load(processor, "video", 16, *WIDE)
    inputs = processor.from_text(text, [video], options=EVS, with_labels=True)
    loss = model(**inputs).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert model.multi_modal_projector.linear_2.weight.grad.abs().sum() > 0
    model.zero_grad()


def test_b7_two_videos_in_a_batch_stay_two_samples(model, processor):
    first = request(processor, "A<video>", load(processor, "video", 16, *WIDE, seed=1))
    second = request(processor, "Two<video>!", load(processor, "video", 12, *TALL, seed=2))
    batch = collate([first, second], pad_token_id=0, padding_side="right")
    logits = logits_of(model, batch)
    assert logits.shape[0] == 2
    for row, alone in enumerate((first, second)):
        own = logits[row][batch.attention_mask[row]]
        torch.testing.assert_close(own, logits_of(model, alone)[0], rtol=0, atol=1e-5)


def test_b9_images_and_a_video_share_a_prompt(model, processor):
    image, video = load(processor, "image", 40, 40), load(processor, "video", 8, *WIDE)
    inputs = request(processor, "<image> then <video> and <image>", image, video, image)
    assert [item.modality for item in inputs.media] == ["image", "video", "image"]
    assert torch.isfinite(logits_of(model, inputs)).all()


def test_b10_two_videos_in_one_text_each_keep_their_place(model, processor):
    one = load(processor, "video", 8, *WIDE, seed=1)
    two = load(processor, "video", 8, *WIDE, seed=2)
    forward = logits_of(model, request(processor, "<video><video>", one, two))
    swapped = logits_of(model, request(processor, "<video><video>", two, one))
    assert forward.shape == swapped.shape
    assert not torch.allclose(forward[:, -1], swapped[:, -1], atol=1e-6)


def test_b11_a_batch_of_texts_with_videos_is_collated(model, processor):
    samples = [
        request(processor, "<video>" + "?" * n, load(processor, "video", 8, *WIDE, seed=n))
        for n in range(3)
    ]
    batch = collate(samples, pad_token_id=0, padding_side="left")
    logits = logits_of(model, batch)
    for row, sample in enumerate(samples):
        alone = logits_of(model, sample)[0, -1]
        torch.testing.assert_close(logits[row, -1], alone, rtol=0, atol=1e-5)


def test_b12_frame_times_come_with_the_video_and_need_no_metadata_argument(processor):
    video = load(processor, "video", 16, *WIDE)
    inputs = request(processor, "<video>", video, options=MediaOptions(fps=4.0))
    text = processor.tokenizer.decode(inputs.input_ids[0])
    assert "Frame 1 sampled at 0.00 seconds and frame 2 sampled at 0.25 seconds: " in text


def test_b15_odd_videos_are_padded_each_for_itself(model, processor):
    options = MediaOptions(fps=8.0)
    odd = [load(processor, "video", 5, *WIDE, seed=seed) for seed in (1, 2)]
    both = request(processor, "<video><video>", *odd, options=options)
    alone = [request(processor, "<video>", video, options=options) for video in odd]
    together = model.encode(both.media)
    for (features, layout), single in zip(together, alone, strict=True):
        [(expected, _)] = model.encode(single.media)
        assert layout.shape.grid[0] == 3
        torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("milliseconds", "tokens"), [(1280, 16), (10_000, 125), (1000, 13)])
def test_b16_audio_has_no_token_that_stands_for_no_sound(model, processor, milliseconds, tokens):
    inputs = request(processor, "<so_embedding>", load(processor, "audio", milliseconds))
    assert inputs.media[0].num_tokens == tokens
    [(features, _)] = model.encode(inputs.media)
    assert len(features) == tokens


def test_b17_audio_is_never_ignored_in_silence(model, processor):
    embeddings = model.get_input_embeddings()(torch.tensor([[40, 27, 27, 41]]))
    with pytest.raises(ValueError, match="inputs_embeds came together with media"):
        model(inputs_embeds=embeddings, input_features=torch.randn(1, 16, 8))
    with pytest.raises(ValueError, match=r"Row 0 of input_ids has 2 placeholder token\(s\), 2 of"):
        model(input_ids=torch.tensor([[40, 27, 27, 41]]))


@pytest.mark.parametrize(
    ("plain", "wrapped", "kind"),
    [
        ("<image>", "<img><image></img>", "image"),
        ("<so_embedding>", "<so_start><so_embedding><so_end>", "audio"),
    ],
)
def test_b18_delimiters_that_are_there_already_are_not_doubled(processor, plain, wrapped, kind):
    medium = load(processor, kind, *((40, 40) if kind == "image" else (1000,)))
    once, twice = request(processor, plain, medium), request(processor, wrapped, medium)
    assert once.input_ids.tolist() == twice.input_ids.tolist()
