"""The same conversation, however it is written, is the same sample."""

import base64
import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data import BadRow, encode_sample, open_dataset
from finetune.data.formats import read_row
from finetune.data.media import MediaFolder
from finetune.data.sample import Origin, RowError
from omni import MediaOptions
from tests.support import tiny_omni
from tests.support.rows import turns, write_jsonl, write_media, write_shard

ORIGIN = Origin(file="data.jsonl", row=1)
FOLDER = MediaFolder(root=Path("."))


@pytest.fixture(scope="module")
def processor():
    return tiny_omni.omni_processor()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_media(tmp_path_factory.mktemp("data"))


def only_row(dataset):
    [row] = dataset
    assert not isinstance(row, BadRow), row
    return row


def as_messages(folder):
    part = {"type": "image", "path": "a.png"}
    content = [part, {"type": "text", "text": "What?"}]
    row = {"messages": [{"role": "user", "content": content}, turns()[1]]}
    return open_dataset(write_jsonl(folder / "messages.jsonl", [row]))


def as_openai(folder):
    data = base64.b64encode((folder / "a.png").read_bytes()).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    content = [part, {"type": "text", "text": "What?"}]
    row = {"messages": [{"role": "user", "content": content}, turns()[1]]}
    return open_dataset(write_jsonl(folder / "openai.jsonl", [row]))


def as_axolotl(folder):
    part = {"type": "image", "base64": base64.b64encode((folder / "a.png").read_bytes()).decode()}
    content = [part, {"type": "text", "text": "What?"}]
    row = {"messages": [{"role": "user", "content": content}, turns()[1]]}
    return open_dataset(write_jsonl(folder / "axolotl.jsonl", [row]))


def as_llava(folder):
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "This."}]
    row = {"id": "1", "image": "a.png", "conversations": said}
    (folder / "llava.json").write_text(json.dumps([row], indent=2))
    return open_dataset(folder / "llava.json")


def as_ms_swift(folder):
    row = {"messages": turns("<image>\nWhat?"), "images": ["a.png"]}
    return open_dataset(write_jsonl(folder / "swift.jsonl", [row]))


def as_trl(folder):
    row = {"prompt": turns()[:1], "completion": turns()[1:], "images": ["a.png"]}
    return open_dataset(write_jsonl(folder / "trl.jsonl", [row]))


def as_trl_with_places(folder):
    content = [{"type": "image"}, {"type": "text", "text": "What?"}]
    said = [{"role": "user", "content": content}, turns()[1]]
    row = {"messages": said, "images": [{"bytes": (folder / "a.png").read_bytes().hex()}]}
    row["images"] = [{"path": "a.png", "bytes": None}]
    return open_dataset(write_jsonl(folder / "trl2.jsonl", [row]))


def as_llama_factory(folder):
    said = [{"who": "me", "text": "<image>\nWhat?"}, {"who": "you", "text": "This."}]
    (folder / "d.json").write_text(json.dumps([{"talk": said, "pictures": ["a.png"]}]))
    tags = {"role_tag": "who", "content_tag": "text", "user_tag": "me", "assistant_tag": "you"}
    columns = {"messages": "talk", "images": "pictures"}
    entry = {"file_name": "d.json", "formatting": "sharegpt", "columns": columns, "tags": tags}
    (folder / "dataset_info.json").write_text(json.dumps({"my_set": entry, "other": entry}))
    return open_dataset(folder, name="my_set")


def as_alpaca(folder):
    row = {"instruction": "<image>\nWhat?", "input": "", "output": "This.", "images": ["a.png"]}
    (folder / "alpaca.json").write_text(json.dumps([row]))
    entry = {"file_name": "alpaca.json", "columns": {"images": "images"}}
    (folder / "alpaca").mkdir(exist_ok=True)
    info = folder / "alpaca" / "dataset_info.json"
    info.write_text(json.dumps({"my_set": {**entry, "file_name": "../alpaca.json"}}))
    return open_dataset(info, media_dir=folder)


def as_webdataset(folder):
    files = {"0001.png": folder / "a.png", "0001.json": {"messages": turns("<image>\nWhat?")}}
    return open_dataset(write_shard(folder / "shard.tar", files))


def as_webdataset_by_name(folder):
    content = [{"type": "image", "path": "0001.PNG"}, {"type": "text", "text": "What?"}]
    row = {"messages": [{"role": "user", "content": content}, turns()[1]]}
    return open_dataset(
        write_shard(folder / "named.tar", {"0001.json": row, "0001.PNG": folder / "a.png"})
    )


def as_saved_dataset(folder):
    pyarrow = pytest.importorskip("pyarrow")
    image = {"bytes": (folder / "a.png").read_bytes(), "path": "gone.png"}
    # Arrow fills every struct with the keys of all others.
    content = [
        {"type": "image", "text": None},
        {"type": "text", "text": "What?"},
    ]
    answer = [{"type": "text", "text": "This."}]
    said = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    table = pyarrow.Table.from_pylist([{"messages": said, "images": [image], "videos": None}])
    saved = folder / "saved"
    saved.mkdir(exist_ok=True)
    with pyarrow.ipc.new_stream(saved / "data-00000-of-00001.arrow", table.schema) as writer:
        writer.write_table(table)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    (saved / "state.json").write_text(json.dumps(state))
    return open_dataset(saved)


@pytest.mark.parametrize(
    "write",
    [
        as_openai,
        as_axolotl,
        as_llava,
        as_ms_swift,
        as_trl,
        as_trl_with_places,
        as_llama_factory,
        as_alpaca,
        as_webdataset,
        as_webdataset_by_name,
        as_saved_dataset,
    ],
)
def test_every_format_gives_the_row_of_hugging_face_messages(folder, processor, write):
    expected = encode_sample(only_row(as_messages(folder)), processor)
    found = encode_sample(only_row(write(folder)), processor)
    assert found.input_ids.tolist() == expected.input_ids.tolist()
    assert found.labels.tolist() == expected.labels.tolist()
    [item], [same] = found.media, expected.media
    assert [w.rows.tolist() for w in item.windows] == [w.rows.tolist() for w in same.windows]


def test_all_kinds_of_media_mix_in_one_row_and_stay_where_they_were_written(folder, processor):
    text = "First <image>, then <video> and\n<audio>, <pdf> and <image>."
    row = {
        "messages": turns(text),
        "images": ["a.png", "b.png"],
        "videos": ["v.mp4"],
        "audios": ["s.wav"],
        "documents": ["d.pdf"],
        "media_options": {
            "fps": 2,
            "audio_in_video": True,
            "reduction": {"video": "uniform(0.5)"},
        },
    }
    sample = only_row(open_dataset(write_jsonl(folder / "mix.jsonl", [row])))
    inputs = encode_sample(sample, processor)
    kinds = [item.modality for item in inputs.media]
    assert kinds == ["image", "video", "audio", "audio", "image", "image", "image"]
    assert [item.reduction for item in inputs.media if item.modality == "video"] == ["uniform(0.5)"]
    assert inputs.media[1].facts["sampled_frames"] == 4
    text = processor.tokenizer.decode(inputs.input_ids[0])
    assert "First <img><image>" in text
    assert "</img>, then Frame 1 sampled" in text
    assert "Page 2 of 2: <img>" in text


def test_options_of_a_row_win_over_those_of_the_run_modality_by_modality(folder, processor):
    row = {
        "messages": turns("<image><video>"),
        "images": ["a.png"],
        "videos": ["v.mp4"],
        "media_options": {"reduction": {"video": "evs(0.5)"}},
    }
    sample = only_row(open_dataset(write_jsonl(folder / "options.jsonl", [row])))
    run = MediaOptions(fps=1.0, reduction={"video": "evs(0.9)", "image": "uniform(0.5)"})
    image, video = encode_sample(sample, processor, options=run).media
    assert (image.reduction, video.reduction) == ("uniform(0.5)", "evs(0.5)")
    assert video.facts["sampled_frames"] == 2


def test_a_set_is_named_where_there_are_several(folder):
    as_llama_factory(folder)
    with pytest.raises(
        ValueError, match=r"found 2 sets \(my_set, other\); name.*info\.json#my_set"
    ):
        open_dataset(folder / "dataset_info.json")
    with pytest.raises(ValueError, match=r"no set 'mine'; expected one of my_set, other"):
        open_dataset(folder / "dataset_info.json", name="mine")
    assert len(open_dataset(folder / "dataset_info.json", name="my_set, other")) == 2
    assert len(open_dataset(f"{folder}/dataset_info.json#other")) == 1


def test_reading_a_row_twice_or_in_another_order_gives_the_same(folder):
    rows = [{"messages": turns(f"Question {i}?")} for i in range(5)]
    path = write_jsonl(folder / "order.jsonl", [rows[0], "", "{broken", *rows[1:]])
    dataset = open_dataset(path)
    backwards = [dataset[i] for i in reversed(range(len(dataset)))]
    assert list(dataset) == backwards[::-1]
    assert list(dataset.subset([4, 0])) == [dataset[4], dataset[0]]
    assert [row.origin.row for row in dataset] == [1, 3, 4, 5, 6, 7]
    assert [isinstance(row, BadRow) for row in dataset] == [False, True, False, False, False, False]


@pytest.mark.parametrize("part", [slice(1, 3), slice(None, None, -1), slice(-2, 99), slice(5, 5)])
def test_a_slice_holds_what_a_list_would(folder, part):
    rows = [{"messages": turns(f"Question {i}?")} for i in range(5)]
    data = open_dataset(write_jsonl(folder / "rows.jsonl", rows))
    assert list(data[part]) == list(data)[part]


def test_functions_called_in_text_and_in_openai_style_are_the_same(processor):
    arguments = {"city": "Oslo", "days": 2}
    call = {"name": "weather", "arguments": arguments}
    openai = {
        "messages": [
            {"role": "user", "content": "Rain?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"function": {**call, "arguments": json.dumps(arguments)}}],
            },
            {"role": "tool", "content": "wet"},
            {"role": "assistant", "content": "Yes."},
        ]
    }
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "Rain?"},
            {"from": "function_call", "value": json.dumps(call)},
            {"from": "observation", "value": "wet"},
            {"from": "gpt", "value": "Yes."},
        ],
        "tools": "[]",
    }
    a, b = (read_row(row, ORIGIN, FOLDER) for row in (openai, sharegpt))
    assert a == b
    assert "<parameter=city>\nOslo\n" in processor.tokenizer.decode(
        encode_sample(a, processor).input_ids[0]
    )


BAD = {
    "no conversation": ({"text": "hello"}, r"found the columns 'text'; expected 'messages'"),
    "empty conversation": ({"messages": []}, r"found \[\] as conversation"),
    "unknown role": (
        {"messages": [{"role": "owner", "content": "a"}]},
        r"message 1: found role 'owner', expected one of system",
    ),
    "no answer": ({"messages": turns()[:1]}, "found no assistant message to learn"),
    "empty answer": ({"messages": turns(answer="")}, "message 2: the assistant says nothing"),
    "late system message": (
        {"messages": [*turns(), {"role": "system", "content": "Be kind."}]},
        "message 3: found a system message, expected it only as the 1st",
    ),
    "number as content": ({"messages": turns(answer=5)}, "message 2: found 5 as content"),
    "turn token in the text": (
        {"messages": turns("<|im_end|>")},
        r"message 1: found '<\|im_end\|>' in the text",
    ),
    "tag without media": ({"messages": turns("<image>")}, r"one more <image>.*has images \(0\)"),
    "sound tag without sound": ({"messages": turns("<audio>")}, r"has audios \(0\)"),
    "media without a tag": (
        {"messages": turns("<image>"), "images": ["a.png", "b.png"]},
        "has 2 media in its list of images but the conversation has places for 1",
    ),
    "two lists of a kind": (
        {"messages": turns("<image>"), "image": "a.png", "images": ["a.png"]},
        "found both 'images' and another list of images",
    ),
    "frames as a video": (
        {"messages": turns("<video>"), "videos": [["1.png", "2.png"]]},
        "videos 1: found a list, such as a video's frames",
    ),
    "sampling in a part": (
        {"messages": turns([{"type": "video", "path": "v.mp4", "fps": 2}])},
        r"found the key 'fps' in a part of type 'video'.*'media_options'",
    ),
    "unknown part": (
        {"messages": turns([{"type": "smell", "smell": "rose"}])},
        "part of type 'smell'",
    ),
    "damaged base64": (
        {"messages": turns([{"type": "image", "base64": "***"}])},
        "message 1: found content that is not base64",
    ),
    "misspelt option": (
        {"messages": turns(), "media_options": {"fsp": 2}},
        "found the key 'fsp'; did you mean 'fps'",
    ),
    "option that is no number": (
        {"messages": turns(), "media_options": {"fps": "2"}},
        r"found fps='2'; input should be a valid number",
    ),
    "option of zero": ({"messages": turns(), "media_options": {"fps": 0}}, "found fps=0, expected"),
    "boxes": ({"messages": turns(), "objects": {"bbox": [[1]]}}, "'objects': grounding boxes"),
    "preference pair": ({"messages": turns(), "rejected_response": "no"}, "a preference pair"),
    "weighted loss": (
        {"messages": [turns()[0], {**turns()[1], "loss_scale": 0.5}]},
        "found loss_scale=0.5, expected 0 or 1",
    ),
    "media in a turn": (
        {"messages": [{**turns()[0], "images": ["a.png"]}, turns()[1]]},
        r"message 1: found images=\['a.png'\], which nobody would read; media are columns",
    ),
    "a picture in a turn": (
        {"messages": [{**turns()[0], "image": "a.png"}, turns()[1]]},
        "message 1: found image='a.png', which nobody would read",
    ),
    "an old call": (
        {"messages": [turns()[0], {**turns()[1], "function_call": {"name": "f"}}]},
        "message 2: found function_call=",
    ),
    "a call that counts otherwise": (
        {
            "conversations": [
                {"from": "human", "value": "Rain?"},
                {"from": "gpt", "value": "I look.", "loss": 1},
                {"from": "function_call", "value": '{"name": "f"}', "loss": 0},
            ]
        },
        "message 3: found another loss than on the words before it",
    ),
    "system that is no text": ({"messages": turns(), "system": ["a"]}, r"found \['a'\] as system"),
    "two system messages": (
        {"messages": [{"role": "system", "content": "A."}, *turns()], "system": "B."},
        "found a column 'system' beside another system message",
    ),
    "loss on the user": (
        {"messages": [{**turns()[0], "loss": True}, turns()[1]]},
        "message 1: found a loss on the user's words",
    ),
    "arguments that are no object": (
        {
            "messages": [
                turns()[0],
                {"role": "tool_call", "content": '{"name": "f", "arguments": 3}'},
            ]
        },
        "found 3 as arguments of f",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_row_that_would_be_misread_is_refused_with_the_reason(name):
    row, reason = BAD[name]
    with pytest.raises(RowError, match=reason):
        read_row(row, ORIGIN, FOLDER)


def test_plain_notes_may_stand_beside_what_is_said():
    noted = [{**turn, "id": 3, "time": "now", "images": [], "image": None} for turn in turns()]
    assert read_row({"messages": noted}, ORIGIN, FOLDER) == read_row(
        {"messages": turns()}, ORIGIN, FOLDER
    )


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
WORDS = (
    "messages conversations images prompt completion tools media_options role from content value "
    "type path tool_calls user assistant"
)
KEYS = st.sampled_from(WORDS.split())


@given(st.dictionaries(KEYS, VALUES | st.lists(st.dictionaries(KEYS, VALUES | KEYS), max_size=3)))
def test_nothing_that_json_can_hold_makes_the_reader_crash(row):
    with contextlib.suppress(RowError):
        read_row(row, ORIGIN, FOLDER)
