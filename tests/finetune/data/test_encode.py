"""Labels are what the chat template lets the assistant say, and nothing else."""

import pickle

import av
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.data import decode_media, encode_prompt, encode_sample, open_dataset, with_max_length
from finetune.data.formats import read_row
from finetune.data.media import MediaFolder
from finetune.data.sample import Origin, Sample
from omni import MediaOptions, OmniModel, OmniProcessor
from omni.assistant import EMBEDDED_PATH
from omni.errors import (
    ContextLengthError,
    CorruptMediaError,
    MediaAccessError,
    RequestError,
    UnsupportedMediaError,
)
from omni.inputs import IGNORE_INDEX
from tests.support import tiny_omni
from tests.support.media import moving_square, write_video
from tests.support.rows import turns, write_jsonl, write_media

ORIGIN = Origin(file="data.jsonl", row=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_media(tmp_path_factory.mktemp("data"))


def byte_processor():
    return tiny_omni.omni_processor(max_model_len=65_536)


def tiny_processor():
    """That of the embedded checkpoint, whose tokens are longer than one byte."""
    config = OmniModel.config_class.from_pretrained(EMBEDDED_PATH)
    return OmniProcessor.from_pretrained(EMBEDDED_PATH, config)


PROCESSORS = {"bytes": byte_processor(), "omni-tiny": tiny_processor()}


def sample_of(row, folder=None) -> Sample:
    return read_row(row, ORIGIN, MediaFolder(root=folder))


def spans(labels: torch.Tensor) -> list[list[int]]:
    """Runs of labels that count."""
    found: list[list[int]] = []
    before = IGNORE_INDEX
    for label in labels[0].tolist():
        if label != IGNORE_INDEX:
            if before == IGNORE_INDEX:
                found.append([])
            found[-1].append(label)
        before = label
    return found


def said_by_the_template(processor: OmniProcessor, messages: list[dict], tools) -> list[str]:
    """What each assistant turn adds to the prompt which asks for it, without our span search."""
    said = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        common = {"tools": tools, "keep_history_thinking": True}
        prompt = processor.render(
            messages[:number],
            thinking=bool(message.get("reasoning_content")),
            add_generation_prompt=True,
            **common,
        )
        whole = processor.render(messages[: number + 1], add_generation_prompt=False, **common)
        assert whole.startswith(prompt)
        said.append(whole.removeprefix(prompt).removesuffix("\n"))
    return said


# Words, spaces, signs, letters of several bytes: all but what starts a special token.
TEXT = st.text(st.characters(exclude_characters="<", exclude_categories=("Cs",)), max_size=20)
SPOKEN = TEXT.filter(str.strip)
CALL = st.fixed_dictionaries(
    {"name": st.just("f"), "arguments": st.dictionaries(TEXT, TEXT, max_size=3)}
)
ASSISTANT = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": SPOKEN},
    optional={"reasoning_content": SPOKEN, "tool_calls": st.lists(CALL, min_size=1, max_size=2)},
)
USER = st.fixed_dictionaries({"role": st.just("user"), "content": SPOKEN})
TOOL = st.fixed_dictionaries({"role": st.just("tool"), "content": SPOKEN})


@st.composite
def conversations(draw):
    pairs = st.tuples(USER | TOOL, ASSISTANT)
    found = [turn for pair in draw(st.lists(pairs, min_size=1, max_size=3)) for turn in pair]
    if draw(st.booleans()):
        found = [{"role": "system", "content": draw(TEXT)}, *found]
    return [{"role": "user", "content": "Hi."}, *found] if found[0]["role"] == "tool" else found


@pytest.mark.parametrize("name", PROCESSORS)
@given(conversations(), st.booleans())
def test_labelled_spans_are_exactly_what_the_template_lets_the_assistant_say(
    name, messages, with_tools
):
    processor = PROCESSORS[name]
    tools = [{"name": "f", "description": "does"}] if with_tools else []
    sample = sample_of({"messages": messages, "tools": tools})
    inputs = encode_sample(sample, processor)
    texts = [processor.tokenizer.decode(ids) for ids in spans(inputs.labels)]
    assert texts == said_by_the_template(processor, list(sample.messages), tools)


@pytest.mark.parametrize("name", PROCESSORS)
@given(conversations())
def test_labels_repeat_the_ids_of_the_processor_and_those_are_the_template_text(name, messages):
    processor = PROCESSORS[name]
    inputs = encode_sample(sample_of({"messages": messages}), processor)
    ids, labels = inputs.input_ids, inputs.labels
    assert torch.equal(torch.where(labels == IGNORE_INDEX, ids, labels), ids)
    direct = processor(messages, with_labels=True)
    assert torch.equal(ids, direct.input_ids)
    assert torch.equal(labels, direct.labels)


@given(conversations(), st.data())
def test_only_turns_that_are_to_be_learned_are_labelled(messages, data):
    processor = PROCESSORS["bytes"]
    every = sample_of({"messages": messages})
    flags = data.draw(st.lists(st.booleans(), min_size=len(every.learned), max_size=9).filter(any))
    flags = flags[: len(every.learned)]
    flags[-1] = True  # a row without any loss is refused
    marked, wanted = [], iter(flags)
    for message in messages:
        is_said = message["role"] == "assistant"
        marked.append({**message, "loss": next(wanted)} if is_said else message)
    labels = encode_sample(sample_of({"messages": marked}), processor).labels
    all_spans = spans(encode_sample(every, processor).labels)
    assert spans(labels) == [span for span, wanted in zip(all_spans, flags, strict=True) if wanted]


def test_of_a_pair_of_prompt_and_completion_only_the_completion_is_learned():
    processor = PROCESSORS["bytes"]
    row = {"prompt": [*turns("a", "b"), turns("c")[0]], "completion": turns("c", "d")[1:]}
    labels = encode_sample(sample_of(row), processor).labels
    assert [processor.tokenizer.decode(span) for span in spans(labels)] == ["d<|im_end|>"]


def test_media_are_never_labelled_wherever_they_stand(folder):
    processor = PROCESSORS["bytes"]
    row = {
        "messages": [*turns("<image>\n<video>", "See <image> there."), *turns("<audio>", "Yes.")],
        "images": ["a.png", "b.png"],
        "video": "v.mp4",
        "audio": "s.wav",
    }
    inputs = encode_sample(sample_of(row, folder), processor)
    for item in inputs.media:
        assert (inputs.labels[0, item.start : item.start + item.block_length] == -100).all()
    texts = [processor.tokenizer.decode(span) for span in spans(inputs.labels)]
    assert texts == ["See ", " there.<|im_end|>", "Yes.<|im_end|>"]


def test_a_prompt_to_answer_is_the_beginning_of_the_training_row(folder):
    processor = PROCESSORS["bytes"]
    row = {"messages": [*turns("<image>", "One."), *turns("<audio>\nAnd?", "Two.")]}
    row |= {"image": "a.png", "audio": "s.wav"}
    sample = sample_of(row, folder)
    prompt, answer = encode_prompt(sample, processor)
    whole = encode_sample(sample, processor)
    length = prompt.input_ids.shape[1]
    assert torch.equal(prompt.input_ids, whole.input_ids[:, :length])
    rest = processor.tokenizer.decode(whole.input_ids[0, length:])
    assert rest == f"{answer}<|im_end|>\n"
    with pytest.raises(RequestError, match="ends with 'user'; expected a question"):
        encode_prompt(sample_of({"messages": [*turns(), turns()[0]]}), processor)


def test_a_row_that_is_too_long_is_refused_whole_with_its_numbers(folder):
    processor = PROCESSORS["bytes"]
    sample = sample_of({"messages": turns("<audio>"), "audio": "s.wav"}, folder)
    length = encode_sample(sample, processor).num_tokens
    assert encode_sample(sample, with_max_length(processor, length)).num_tokens == length
    with pytest.raises(ContextLengthError, match=rf"has {length} tokens.*s\.wav 10"):
        encode_sample(sample, with_max_length(processor, length - 1))


def test_decoded_media_give_the_same_loss_and_go_to_another_process(folder):
    model = tiny_omni.omni_model()
    processor = tiny_omni.omni_processor(model.config)
    row = {"messages": turns("<image><video><audio>"), "images": ["a.png"]}
    row |= {"videos": ["v.mp4"], "audios": ["s.wav"]}
    options = MediaOptions(reduction={"audio": "silence(0.5)", "video": "evs(0.5)"})
    inputs = encode_sample(sample_of(row, folder), processor, options=options)
    moved = pickle.loads(pickle.dumps(decode_media(inputs)))
    with torch.no_grad():
        assert torch.equal(model(**inputs).loss, model(**moved).loss)


def test_damage_behind_the_header_shows_before_the_model_runs(folder, tmp_path):
    path = write_video(
        tmp_path / "v.mp4",
        moving_square(48),
        options={"g": "12"},
        container_options={"movflags": "faststart"},
    )
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.pos]
    data = bytearray(path.read_bytes())
    data[places[24] :] = bytes(len(data) - places[24])  # the index stands before it
    path.write_bytes(data)
    sample = sample_of({"messages": turns("<video>"), "video": "v.mp4"}, tmp_path)
    inputs = encode_sample(sample, PROCESSORS["bytes"])
    for keep in (True, False):
        with pytest.raises(CorruptMediaError, match=r"v\.mp4"):
            decode_media(inputs, keep=keep)


NAMING = {"messages": turns()}


def test_the_gateway_decides_which_files_a_row_may_name(folder, tmp_path):
    processor = tiny_omni.omni_processor()
    processor.allowed_roots = [tmp_path]
    inside = write_media(tmp_path)
    for name in (str(folder / "a.png"), f"../{folder.name}/../{folder.name}/a.png"):
        [sample] = open_dataset(write_jsonl(inside / "d.jsonl", [{**NAMING, "image": name}]))
        with pytest.raises(MediaAccessError, match="outside the allowed directories"):
            encode_sample(sample, processor)
    sample = sample_of({"messages": turns(), "image": "https://localhost/a.png"}, tmp_path)
    with pytest.raises(MediaAccessError, match="the network is off"):
        encode_sample(sample, processor)


def test_a_picture_in_place_of_a_recording_is_refused(folder):
    sample = sample_of({"messages": turns("<audio>"), "audio": "a.png"}, folder)
    with pytest.raises(UnsupportedMediaError, match="expected an audio"):
        encode_sample(sample, PROCESSORS["bytes"])
