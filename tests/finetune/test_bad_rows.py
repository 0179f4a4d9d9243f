"""Five per cent of the rows broken in twelve ways: training goes on, and lists exactly those."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from tests.finetune.test_loop import SETTINGS, conversation, run
from tests.support.rows import write_jsonl, write_media

ROWS, EVERY = 240, 20


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_media(tmp_path_factory.mktemp("data"))
    whole = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("this is no picture")
    (folder / "empty.wav").write_bytes(b"")
    (folder / "cut.mp4").write_bytes((folder / "v.mp4").read_bytes()[:400])
    soundfile.write(folder / "nan.wav", np.full(8000, np.nan, np.float32), 16_000, subtype="FLOAT")
    ask = conversation(None, "", 0)["messages"]
    return folder, {
        "no JSON": '{"messages": [',
        "no messages": {"text": "hello"},
        "empty": {"messages": []},
        "no answer": {"messages": ask[:1]},
        "unknown role": {"messages": [{"role": "robot", "content": "hi"}, ask[1]]},
        "missing file": conversation("image", "missing.png", 0),
        "cut picture": conversation("image", "cut.png", 0),
        "no picture": conversation("image", "text.png", 0),
        "empty sound": conversation("audio", "empty.wav", 0),
        "no numbers": conversation("audio", "nan.wav", 0),
        "cut video": conversation("video", "cut.mp4", 0),
        "too long": {"messages": [{"role": "user", "content": "long " * 500}, ask[1]]},
    }


def test_exactly_the_broken_rows_are_left_out(data, tmp_path):
    folder, broken = data
    assert len(broken) == 12 == ROWS // EVERY
    kinds = [("image", "a.png"), ("audio", "s.wav"), (None, "")]
    rows = [conversation(*kinds[i % 3], i) for i in range(ROWS)]
    places = range(7, ROWS, EVERY)
    for place, row in zip(places, broken.values(), strict=True):
        rows[place] = row
    path = write_jsonl(folder / "data.jsonl", rows)
    settings = replace(SETTINGS, samples_per_step=24, max_steps=10, save_steps=10)
    _, result = run(path, tmp_path, settings)
    assert result.steps == 10
    assert [bad.origin.row for bad in result.bad] == [place + 1 for place in places]
    for bad in result.bad:
        assert len(bad.reason) > 20, bad  # says what was found
    listed = [json.loads(line) for line in (tmp_path / "bad_rows.jsonl").read_text().splitlines()]
    assert [entry["row"] for entry in listed] == [place + 1 for place in places]
