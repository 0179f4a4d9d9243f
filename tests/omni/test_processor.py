import base64
import io
import re

import pytest
import torch
from PIL import Image as PILImage

from omni.errors import CheckpointError, ConfigError, ContextLengthError, RequestError
from omni.labels import tubelet_labels
from omni.options import MediaOptions
from omni.processor import OmniProcessor
from omni.settings import ProcessorSettings
from tests.support import tiny_omni
from tests.support.media import write_pdf
from tests.support.untyped import untyped


@pytest.fixture(scope="module")
def processor() -> OmniProcessor:
    return tiny_omni.omni_processor()


def jpeg() -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(tiny_omni.picture(40, 60)).save(buffer, "JPEG")
    return buffer.getvalue()


def decode(processor, inputs) -> str:
    return processor.tokenizer.decode(inputs.input_ids[0])


def user(*parts) -> list[dict]:
    return [{"role": "user", "content": list(parts)}]


def test_pieces_tokenised_apart_give_the_ids_of_the_whole_string(processor):
    image = processor.load_media(tiny_omni.picture(40, 40))
    inputs = processor.from_text("Look:\n<image>\nWhat?", [image])
    tokens = inputs.media[0].num_tokens
    whole = "Look:\n<img>" + "<image>" * tokens + "</img>\nWhat?"
    assert inputs.input_ids[0].tolist() == processor.tokenise(whole)


def test_the_label_example_of_the_released_processor_is_reproduced():
    times = [index * 100 / 1000 for index in (0, 5, 10, 15, 20)]
    assert tubelet_labels(times, 2) == [
        "Frame 1 sampled at 0.00 seconds and frame 2 sampled at 0.50 seconds: ",
        "Frame 3 sampled at 1.00 seconds and frame 4 sampled at 1.50 seconds: ",
        "Frame 5 sampled at 2.00 seconds: ",
    ]


def test_frame_times_are_those_of_the_released_model_where_the_rate_is_steady(processor):
    video = processor.load_media(tiny_omni.clip(61, 24, 24), fps=30.0)
    inputs = processor.from_text("<video>", [video], options=MediaOptions(num_frames=2))
    # The released processor counts 33 ms a frame at 30 fps: frame 60 is said to be at 1.98 s.
    assert "frame 2 sampled at 1.98 seconds: " in decode(processor, inputs)


@pytest.mark.parametrize(
    "part",
    [
        lambda data: {"type": "image", "image": data},
        lambda data: {"type": "image", "base64": base64.b64encode(data).decode()},
        lambda data: {"type": "image", "base64": base64.encodebytes(data).decode()},
        lambda data: {"type": "image", "base64": base64.b64encode(data)},
        lambda data: {
            "type": "image_url",
            "image_url": {"url": "data:image/jpeg;base64," + base64.b64encode(data).decode()},
        },
        lambda data: {"type": "media", "media": data},
    ],
)
def test_every_spelling_of_a_picture_part_gives_the_same_prompt(processor, part):
    text = {"type": "text", "text": "What?"}
    inputs = processor(user(part(jpeg()), text))
    expected = processor(user({"type": "image", "image": jpeg()}, text))
    assert inputs.input_ids.tolist() == expected.input_ids.tolist()
    assert decode(processor, inputs).count("<image>") == inputs.media[0].num_tokens


def test_a_path_works_as_a_picture(processor, tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg())
    inputs = processor(user({"type": "image", "path": str(tmp_path / "a.jpg")}))
    assert inputs.media[0].facts == {"width": 60, "height": 40}


def test_pages_of_a_document_are_numbered_pictures(processor, tmp_path):
    write_pdf(tmp_path / "two.pdf", [["one"], ["two"]])
    inputs = processor(user({"type": "media", "media": tmp_path / "two.pdf"}))
    text = decode(processor, inputs)
    assert "Page 1 of 2: <img>" in text
    assert "Page 2 of 2: <img>" in text
    assert [item.facts["page"] for item in inputs.media] == [1, 2]


def test_a_marker_without_its_medium_raises_with_both_counts(processor):
    with pytest.raises(RequestError, match=r"1 media marker.*\(1 image.*0 media"):
        processor([{"role": "user", "content": "Is <image> a tag?"}])


def test_markers_of_another_kind_than_the_media_raise(processor):
    with pytest.raises(RequestError, match="1 video"):
        processor.from_text("<video>", [processor.load_media(tiny_omni.picture(8, 8))])


def test_an_unknown_part_raises_and_names_the_known_ones(processor):
    with pytest.raises(RequestError, match=r"type 'smell'.*'image_url'"):
        processor(user({"type": "smell", "smell": "rose"}))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            {"type": "text", "content": "hi"},
            r"a text part without 'text' \(it has: 'type', 'content'",
        ),
        ({"type": "image", "base64": "abc"}, r"Message 0 has data that are no base64 text"),
        ({"type": "image", "base64": 5}, r"Message 0 has data that are no base64 text"),
        ({"type": "input_audio", "input_audio": {"data": "%"}}, r"data that are no base64 text"),
        ({"type": "input_audio", "input_audio": "abcd"}, r"input_audio needs \{'data': <base64>"),
    ],
)
def test_a_part_that_cannot_be_read_raises_and_says_what_is_expected(processor, part, message):
    with pytest.raises(RequestError, match=message):
        processor(user(part))


@pytest.mark.parametrize("role", ["human", "User", "", None])
def test_a_role_that_no_template_writes_raises(processor, role):
    with pytest.raises(RequestError, match=r"Message 1 has the role .* expected one of 'system'"):
        processor([{"role": "system", "content": "Hi."}, {"role": role, "content": "What?"}])


def test_a_developer_is_the_system(processor):
    asked = {"role": "user", "content": "What?"}
    found, expected = (
        processor([{"role": role, "content": "Be brief."}, asked]).input_ids
        for role in ("developer", "system")
    )
    assert torch.equal(found, expected)


def test_keys_that_nobody_would_read_raise_unless_they_are_empty(processor):
    with pytest.raises(RequestError, match="'images', which nobody would read"):
        processor([{"role": "user", "content": "What?", "images": ["a.png"]}])
    dumped = {"role": "user", "content": "What?", "refusal": None, "annotations": []}
    plain = {"role": "user", "content": "What?"}
    assert torch.equal(processor([dumped]).input_ids, processor([plain]).input_ids)


def test_a_part_without_a_source_raises(processor):
    with pytest.raises(RequestError, match="'video' part without a source"):
        processor(user({"type": "video"}))


def test_a_request_over_the_context_raises_with_the_numbers():
    processor = tiny_omni.omni_processor(max_model_len=100)
    with pytest.raises(ContextLengthError, match=r"has 121 tokens.*holds 100"):
        processor.from_text("x" * 121)
    audio = processor.load_media(tiny_omni.tone(20), sampling_rate=16_000)
    with pytest.raises(ContextLengthError, match="<array> 250"):
        processor.from_text("<so_embedding>", [audio])


def test_room_for_an_answer_that_is_too_long_is_named():
    processor = tiny_omni.omni_processor(max_model_len=100)
    with pytest.raises(ContextLengthError, match="Lower max_new_tokens to 79 or less, or send"):
        processor.from_text("x" * 21, answer_tokens=90)


def test_pictures_share_the_context_instead_of_overflowing_it():
    processor = tiny_omni.omni_processor(max_model_len=60)
    image = processor.load_media(tiny_omni.picture(128, 128))
    alone = processor.from_text("<image>", [image]).media[0].num_tokens
    four = processor.from_text("<image>" * 4, [image] * 4)
    assert four.num_tokens <= 60
    assert max(item.num_tokens for item in four.media) < alone
    with pytest.raises(ContextLengthError, match="smallest allowed size"):
        processor.from_text("<image>" * 40, [image] * 40)


def test_a_wrong_reducer_raises_before_anything_runs(processor):
    audio = processor.load_media(tiny_omni.tone(1), sampling_rate=16_000)
    with pytest.raises(RequestError, match=r"Reduction 'evs\(0.5\)' for audio"):
        processor.from_text(
            "<so_embedding>", [audio], options=MediaOptions(reduction={"audio": "evs(0.5)"})
        )
    with pytest.raises(RequestError, match="Reduction was given for 'smell'"):
        MediaOptions(reduction={"smell": "evs(0.5)"})


def test_a_recording_for_a_model_without_hearing_raises():
    processor = tiny_omni.omni_processor(tiny_omni.omni_config(audio_config=None))
    audio = processor.load_media(tiny_omni.tone(1), sampling_rate=16_000)
    with pytest.raises(RequestError, match="no audio tower"):
        processor.from_text("<so_embedding>", [audio])


def test_training_without_an_assistant_turn_raises(processor):
    with pytest.raises(RequestError, match="at least one assistant message"):
        processor([{"role": "user", "content": "hi"}], with_labels=True)


def test_every_assistant_turn_is_labelled_and_reasoning_is_kept(processor):
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "A", "reasoning_content": "because"},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "B"},
    ]
    inputs = processor(messages, with_labels=True)
    labelled = processor.tokenizer.decode(inputs.labels[inputs.labels != -100])
    assert labelled == "because\n</think>\nA<|im_end|>B<|im_end|>"


def test_a_tiled_image_is_one_run_of_its_tiles():
    config = tiny_omni.omni_config(dynamic_resolution=False, force_image_size=32, max_num_tiles=4)
    processor = tiny_omni.omni_processor(config)
    image = processor.load_media(tiny_omni.picture(40, 160))
    inputs = processor.from_text("<image>", [image])
    assert len(inputs.media) == 5  # four tiles and the thumbnail
    text = decode(processor, inputs)
    assert text == "<img>" + "<image>" * (5 * 16) + "</img>"
    assert torch.isfinite(tiny_omni.OmniModel(config).eval()(**inputs).logits).all()


@pytest.mark.parametrize(
    "changes", [{}, {"dynamic_resolution": False, "force_image_size": 32, "max_num_tiles": 6}]
)
def test_a_picture_has_no_more_tokens_than_asked_unless_that_is_the_least(changes):
    config = tiny_omni.omni_config(**changes)
    processor = tiny_omni.omni_processor(config)
    picture = processor.load_media(tiny_omni.picture(120, 200))

    def tokens(most: int | None, **options) -> int:
        wish = MediaOptions(image_tokens=most, **options)
        inputs = processor.from_text("<image>", [picture], options=wish)
        return sum(item.num_tokens for item in inputs.media)

    as_asked = tokens(None)
    least = tokens(1)
    found = [tokens(most) for most in range(1, as_asked + 1)]
    assert found[-1] == as_asked
    assert len(set(found)) > 1
    thumbnail = 16 if changes else 0  # comes on top
    for most, count in enumerate(found, start=1):
        assert count - thumbnail <= most or count == least
    # What is set stays: a budget takes its tokens elsewhere.
    as_set, with_budget = (
        processor.from_text(
            "<image>", [picture], options=MediaOptions(image_tokens=40, max_tokens=budget)
        ).media
        for budget in (None, 20)
    )
    assert [item.grid for item in with_budget] == [item.grid for item in as_set]
    with pytest.raises(RequestError, match="image_tokens is 0"):
        tokens(0)


@pytest.mark.parametrize("size", [(3, 900), (900, 3), (21, 1982), (8, 640)])
def test_a_thin_picture_has_no_more_tokens_than_asked_either(size):
    processor = tiny_omni.omni_processor()
    picture = processor.load_media(tiny_omni.picture(*size))
    least = processor.config.min_num_patches // processor.config.merge_size**2 + 1
    for most in range(least, 60):
        wish = MediaOptions(image_tokens=most)
        [item] = processor.from_text("<image>", [picture], options=wish).media
        assert item.num_tokens <= most


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": "100"}, "max_tokens is '100'; expected a whole number"),
        ({"num_frames": 2.5}, "num_frames is 2.5; expected a whole number"),
        ({"num_frames": True}, "num_frames is True; expected a whole number"),
        ({"reduction": "evs(0.7)"}, "reduction is 'evs(0.7)'; expected a spec by modality"),
        ({"reduction": {"video": 0.7}}, "The reduction of video is 0.7; expected a spec such as"),
        ({"reduction": {"video": " "}}, "The reduction of video is ' '; expected a spec such as"),
    ],
)
def test_options_of_another_type_are_refused(options, message):
    with pytest.raises(RequestError, match=re.escape(message)):
        untyped(MediaOptions, **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{bad", "processor_config.json is no JSON"),
        ("[]", "processor_config.json holds a list; expected an object"),
    ],
)
def test_damaged_settings_are_named(tmp_path, text, message):
    (tmp_path / "processor_config.json").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        ProcessorSettings.load(tmp_path)


def test_settings_of_another_type_are_refused():
    with pytest.raises(ConfigError, match=r"num_frames is 8.5; expected a whole number"):
        untyped(ProcessorSettings, num_frames=8.5)
    with pytest.raises(ConfigError, match="fps is True; expected a positive number"):
        untyped(ProcessorSettings, fps=True)


def test_settings_survive_saving_and_refuse_unknown_keys(tmp_path):
    ProcessorSettings(fps=3.0, num_frames=7).save(tmp_path)
    assert ProcessorSettings.load(tmp_path) == ProcessorSettings(fps=3.0, num_frames=7)
    (tmp_path / "processor_config.json").write_text('{"num_frame": 7}')
    with pytest.raises(ConfigError, match=r"'num_frame'; did you mean 'num_frames'"):
        ProcessorSettings.load(tmp_path)
    with pytest.raises(ConfigError, match="fps is 0; expected a positive number"):
        ProcessorSettings(fps=0)


def test_a_processor_saves_and_loads(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    again = OmniProcessor.from_pretrained(tmp_path, processor.config)
    assert again.settings == processor.settings
    assert again.tokenise("<|im_start|>é<image>") == processor.tokenise("<|im_start|>é<image>")
    with pytest.raises(CheckpointError, match="No usable tokenizer"):
        OmniProcessor.from_pretrained(tmp_path / "nowhere", processor.config)
