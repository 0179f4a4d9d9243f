"""`omni finetune check`: everything is counted, exactly the bad rows are listed."""

import json
import sys

import pytest

from finetune.batches import Batches
from finetune.cli import register
from finetune.data import BadRow, check_dataset, open_dataset
from finetune.data.check import count_tokens
from finetune.data.encode import encode_sample
from finetune.settings import FinetuneSettings
from omni import cli
from tests.support import tiny_omni
from tests.support.media import moving_square, write_video
from tests.support.rows import turns, write_jsonl, write_media, write_shard


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_media(tmp_path_factory.mktemp("data"))
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:-30])
    (folder / "notes.txt").write_text("no picture")
    path = write_video(
        folder / "cut.mp4", moving_square(48), container_options={"movflags": "faststart"}
    )
    path.write_bytes(path.read_bytes()[:-500])
    return folder


GOOD = {"messages": turns("<image>\nWhat?", "A thing."), "image": "a.png"}
BROKEN = {
    "cut line": '{"messages": [{"role": "us',
    "no object": "[1, 2]",
    "missing file": {**GOOD, "image": "none.png"},
    "empty file": {**GOOD, "image": "empty.png"},
    "cut picture": {**GOOD, "image": "cut.png"},
    "text as a picture": {**GOOD, "image": "notes.txt"},
    "cut video": {"messages": turns("<video>"), "video": "cut.mp4"},
    "recording as a picture": {**GOOD, "image": "s.wav"},
    "tag without a medium": {"messages": turns("<image><image>"), "image": "a.png"},
    "no answer": {"messages": turns()[:1]},
    "address": {**GOOD, "image": "http://localhost/a.png"},
    "too long": {"messages": turns("why " * 500)},
    "wrong reducer": {**GOOD, "media_options": {"reduction": {"image": "evz(0.5)"}}},
    "folder": {**GOOD, "image": "."},
}


@pytest.fixture(scope="module")
def mixed(folder):
    """Good rows with a broken one after every third."""
    rows = []
    for row in BROKEN.values():
        rows += [GOOD, GOOD, GOOD, row]
    return open_dataset(write_jsonl(folder / "mixed.jsonl", rows))


@pytest.fixture(scope="module")
def processor():
    return tiny_omni.omni_processor(max_model_len=1000)


def test_exactly_the_broken_rows_are_listed_each_with_its_reason(mixed, processor):
    report = check_dataset(mixed, processor)
    assert [row.origin.row for row in report.bad] == list(range(4, len(mixed) + 1, 4))
    assert (report.rows, report.good) == (len(mixed), 3 * len(BROKEN))
    assert all(row.reason for row in report.bad)


def test_training_leaves_out_the_rows_that_check_lists(mixed, processor):
    report = check_dataset(mixed, processor)
    batches = Batches(mixed, processor, FinetuneSettings(max_length=1000))
    found = [batches.read(index) for index in range(len(mixed))]
    assert [row for row in found if isinstance(row, BadRow)] == report.bad


def test_tokens_of_all_kinds_add_up(folder, processor):
    row = {
        "messages": turns("<image><video><audio><pdf>"),
        "image": "a.png",
        "video": "v.mp4",
        "audio": "s.wav",
        "pdf": "d.pdf",
        "media_options": {"num_frames": 2, "dpi": 18},
    }
    dataset = open_dataset(write_jsonl(folder / "all.jsonl", [row, GOOD]))
    samples = [encode_sample(sample, processor) for sample in dataset]
    for inputs in samples:
        counts = count_tokens(inputs)
        assert counts["all"] == inputs.num_tokens == sum(counts.values()) - counts["all"]
    found = check_dataset(dataset, processor).to_dict()
    tokens = found["tokens"]
    assert tokens["all"]["total"] == sum(inputs.num_tokens for inputs in samples)
    assert [tokens[kind]["samples"] for kind in ("text", "image", "page", "video")] == [2, 2, 1, 1]
    assert sum(count for _, count in tokens["image"]["histogram"]) == 2
    assert all(bound >= tokens["image"]["most"] for bound, _ in tokens["image"]["histogram"][-1:])
    assert [entry["row"] for entry in found["longest"]] == [1, 2]


def test_a_damaged_shard_loses_only_the_damaged_sample(folder, processor):
    row = {"messages": turns("<image>")}
    files = {
        f"{i:04}.{end}": content
        for i in range(3)
        for end, content in (("json", row), ("png", folder / "a.png"))
    }
    files["0001.png"] = folder / "cut.png"
    files["0003.json"] = {"messages": turns("<image>"), "image": "elsewhere.png"}
    files["0004.txt"] = b"a caption alone"
    files["0005.json"] = row
    files["0005.npy"] = b"numbers"
    report = check_dataset(open_dataset(write_shard(folder / "d.tar", files)), processor)
    assert [row.origin.key for row in report.bad] == ["0001", "0003", "0004", "0005"]
    assert "expected a .json with 'messages'" in report.bad[2].reason
    assert "0005.npy, which is none of jpg" in report.bad[3].reason


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("d.parquet", b"PAR1", "found the ending '.parquet'; expected a .jsonl"),
        ("d.json", b'[{"messages": ', "a damaged list cannot be read in part"),
        ("d.tar", b"no tar", "found no readable tar file"),
        ("d.jsonl", b"\n\n", "found no rows"),
        ("dataset_info.json", b'{"a": {"hf_hub_url": "x"}}', "'hf_hub_url'; download the set"),
        ("dataset_info.json", b'{"a": {"file_name": "x", "rank": 1}}', "the key 'rank'"),
        ("dataset_info.json", b'{"a": {"file_name": "x", "ranking": true}}', "preference pairs"),
    ],
)
def test_data_that_cannot_be_read_at_all_raise(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"(?i){reason}"):
        open_dataset(tmp_path / name)


@pytest.fixture
def run(monkeypatch, capsys):
    monkeypatch.setattr(cli, "entry_points", lambda group: [])
    register(cli.app)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["omni", "finetune", "check", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return call


def test_the_exit_code_tells_good_bad_and_unreadable_data_apart(run, folder):
    good = write_jsonl(folder / "good.jsonl", [GOOD])
    code, out, _ = run(good)
    assert code == 0
    assert "1 rows, 1 good, 0 bad" in out
    bad = write_jsonl(folder / "bad.jsonl", [GOOD, BROKEN["missing file"], GOOD])
    code, out, _ = run(bad)
    assert code == 1
    assert f"bad: {bad}:2: {folder}/none.png: no such file" in out
    code, out, err = run(folder / "nowhere")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_json_is_one_object_with_every_bad_row(run, folder):
    path = write_jsonl(folder / "json.jsonl", [GOOD, *BROKEN.values()])
    code, out, _ = run(path, "--max-length", 300, "--json")
    assert code == 1
    found = json.loads(out)
    assert [row["row"] for row in found["bad_rows"]] == list(range(2, len(BROKEN) + 2))
    assert set(found["bad_rows"][0]) == {"file", "row", "reason"}
    assert (found["rows"], found["good"], found["bad"]) == (len(BROKEN) + 1, 1, len(BROKEN))


def test_roots_sets_and_fit_reach_the_reader(run, folder, tmp_path):
    path = write_jsonl(folder / "roots.jsonl", [GOOD])
    code, out, _ = run(path, "--root", tmp_path)
    assert code == 1
    assert "outside the allowed directories" in out
    assert run(f"{path}#train")[0] == 2
    assert run(path, "--media", tmp_path)[0] == 1
    heard = {"messages": turns("<audio>"), "audio": "s.wav"}
    path = write_jsonl(folder / "fit.jsonl", [heard])
    length = json.loads(run(path, "--json")[1])["tokens"]["all"]["most"] - 1
    assert run(path, "--max-length", length)[0] == 1
    code, out, _ = run(path, "--max-length", length, "--fit")
    assert code == 0
    assert "1 samples reduced to fit" in out
