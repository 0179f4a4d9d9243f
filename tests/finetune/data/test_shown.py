"""`shown`: the tokens of the answer that a picture shows, wherever the row ends up."""

import json
import wave
from itertools import chain

import numpy as np
import pytest
from PIL import Image

from finetune.data import Collator, RowError, encode_sample, open_dataset
from finetune.data.formats import read_row
from finetune.data.media import MediaFolder
from finetune.data.sample import BadRow, Origin
from finetune.guide import FACT, count_marks, find_places
from tests.support import tiny_omni


@pytest.fixture(scope="module")
def processor():
    return tiny_omni.assistant().processor


@pytest.fixture
def write(tmp_path):
    """Writes rows about two pictures; returns the data set."""
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((64, 256, 3), 200, np.uint8)).save(tmp_path / name)

    def write_rows(*answers_and_shown):
        rows = [
            {
                "messages": [
                    {"role": "user", "content": "<image><image>What is written?"},
                    {"role": "assistant", "content": answer},
                ],
                "images": ["a.png", "b.png"],
                "shown": shown,
            }
            for answer, shown in answers_and_shown
        ]
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        return open_dataset(path)

    return write_rows


ANSWER = '{"shop": "AB AB", "town": "OSLO"}'
SHOWN = [
    {"medium": 1, "text": "AB"},
    {"medium": 0, "text": "AB", "from": 0.5},
    {"medium": 1, "text": "OSLO", "from": 0.25, "to": 0.75},
]


def predicted(inputs, processor):
    """What is predicted at each mark, by picture."""
    return [
        processor.tokenizer.decode(
            [int(inputs.input_ids[0, item.start + mark.query + 1]) for mark in item.facts[FACT]]
        )
        for item in inputs.media
    ]


def test_marks_are_at_the_tokens_that_say_what_is_shown(write, processor):
    inputs = encode_sample(write((ANSWER, SHOWN))[0], processor, guided=True)
    assert predicted(inputs, processor) == ["AB", "ABOSLO"]
    places = find_places(inputs)
    said = [int(inputs.input_ids[0, q + 1]) for q in places.queries]
    assert processor.tokenizer.decode(said) == "ABABOSLO"  # in the order of the answer
    first, second = inputs.media
    width = second.grid[2] // 2
    columns = [
        sorted({(t - second.start) % width for t in row.nonzero().flatten().tolist()})
        for row in places.current[4:]
    ]
    assert columns[0][0] >= 0.25 * width - 1
    assert columns[-1][-1] <= 0.75 * width
    middle = (places.current[2].nonzero().min() - first.start) % width
    assert middle >= width // 2 - 1


def test_marks_move_with_their_sample(write, processor):
    data = write((ANSWER, SHOWN), ("no marks", []), (ANSWER, SHOWN[:1]))
    samples = [encode_sample(sample, processor, guided=True) for sample in data]
    alone = [find_places(sample) for sample in samples]
    for batching in ("pack", "bucket"):
        together = Collator(0, max_length=10_000, batching=batching)(samples)
        assert count_marks(together) == sum(len(p.rows) for p in alone if p is not None)
        places = find_places(together)
        ids = together.input_ids[places.rows, places.queries + 1].tolist()
        expected = [
            s.input_ids[0, p.queries + 1].tolist()
            for s, p in zip(samples, alone, strict=True)
            if p is not None
        ]
        assert sorted(ids) == sorted(chain.from_iterable(expected))
        assert (places.visible.sum(1) > 0).all()
        assert not (places.current & ~places.visible).any()


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ("AB", "expected a list of objects"),
        ([{"medium": 0}], "expected a number from 0"),
        ([{"medium": -1, "text": "AB"}], "expected a number from 0"),
        ([{"medium": 0, "text": "AB", "box": 1}], "expected medium, text, from, to"),
        ([{"medium": 0, "text": "AB", "from": 0.5, "to": 0.2}], "0 <= from < to <= 1"),
    ],
)
def test_what_is_not_understood_is_refused(shown, said, tmp_path):
    row = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "AB"}]}
    with pytest.raises(RowError, match=said):
        read_row({**row, "shown": shown}, Origin(file="f", row=1), MediaFolder(root=tmp_path))


@pytest.mark.parametrize(
    "shown",
    [
        [{"medium": 0, "text": "BERGEN"}],
        [{"medium": 2, "text": "AB"}],
        [{"medium": 0, "text": "OSLO"}, {"medium": 0, "text": "AB"}],  # not in this order
    ],
)
def test_what_the_answer_does_not_hold_makes_a_bad_row(shown, write, processor):
    sample = write((ANSWER, shown))[0]
    assert not isinstance(sample, BadRow)
    with pytest.raises(RowError, match="expected texts of the last answer in its order"):
        encode_sample(sample, processor, guided=True)
    assert not count_marks(encode_sample(sample, processor))


def test_a_recording_has_no_columns_to_show_anything(tmp_path, processor):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(32_000))
    row = {
        "messages": [
            {"role": "user", "content": "<audio>What is said?"},
            {"role": "assistant", "content": "AB"},
        ],
        "audios": ["a.wav"],
        "shown": [{"medium": 0, "text": "AB"}],
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    sample = open_dataset(tmp_path / "rows.jsonl")[0]
    with pytest.raises(RowError, match="medium 0 is audio; expected a picture"):
        encode_sample(sample, processor, guided=True)
