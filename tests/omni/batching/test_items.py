"""Which items a batch finds, in which order, and which part of them is a shard's."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni.batching.items import ItemSource, content_hash, in_shard, parse_shard
from omni.errors import RequestError
from omni.media import MediaLimits
from tests.support.media import write_image
from tests.support.tiny_omni import picture


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b" / "deep").mkdir(parents=True)
    write_image(tmp_path / "c.png", picture(8, 8))
    write_image(tmp_path / "b" / "deep" / "a.jpg", picture(8, 8))
    write_image(tmp_path / "b" / "unnamed", picture(8, 8), format="PNG")
    (tmp_path / "b" / "damaged.mp4").write_bytes(b"")
    (tmp_path / "b" / "notes.txt").write_text("no medium")
    (tmp_path / ".hidden.png").write_bytes(b"")
    return tmp_path


def names(given, **options) -> list[str]:
    return [item.name for item in ItemSource(given, **options)]


def test_folders_give_their_media_in_the_order_of_names_and_count_the_rest(folder):
    source = ItemSource(folder)
    found = [item.name.removeprefix(f"{folder}/") for item in source]
    assert found == ["c.png", "b/damaged.mp4", "b/unnamed", "b/deep/a.jpg"]
    assert source.skipped == {".txt": 1}
    assert source.count() == 4


def test_globs_match_files_sorted(folder):
    assert names(f"{folder}/**/*.[pj]*g") == [str(folder / "b/deep/a.jpg"), str(folder / "c.png")]


def test_a_name_that_looks_like_a_pattern_is_a_file_first(tmp_path):
    path = tmp_path / "photo [1].png"
    write_image(path, picture(8, 8))
    assert names(str(path)) == [str(path)]


@pytest.mark.parametrize(
    ("path", "message"),
    [("nothing.png", "no such file"), ("*.nothing", "the pattern matches no file")],
)
def test_paths_that_do_not_exist_are_refused(tmp_path, path, message):
    with pytest.raises(RequestError, match=f"{message}; expected a folder, a glob"):
        ItemSource(str(tmp_path / path))


ROWS = [{"path": "a.png", "question": "Q?", "label": "x"}, {"path": "sub/b.wav", "label": "y"}]


def write_manifest(folder, suffix):
    path = folder / f"list{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in ROWS))
    elif suffix == ".csv":
        path.write_text("path,question,label\na.png,Q?,x\nsub/b.wav,,y\n", encoding="utf-8-sig")
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_manifests_say_path_question_and_whatever_else(tmp_path, suffix):
    first, second = ItemSource(write_manifest(tmp_path, suffix))
    assert (first.name, first.paths, first.questions) == (
        "a.png",
        (str(tmp_path / "a.png"),),
        ("Q?",),
    )
    assert (second.paths, second.questions) == ((str(tmp_path / "sub" / "b.wav"),), ())
    assert [item.row for item in (first, second)] == [{"label": "x"}, {"label": "y"}]


def test_bad_lines_are_items_with_an_error_that_names_the_line(tmp_path):
    path = tmp_path / "list.jsonl"
    path.write_text('{"path": "a.png"}\n{"path": \n[1]\n{"file": "b.png"}\n{"path": 3}\n')
    items = list(ItemSource(path))
    assert [item.name for item in items] == ["a.png", *(f"{path}:{i}" for i in (2, 3, 4, 5))]
    for item, said in zip(
        items[1:],
        ["no JSON", "is a list, not an object", r"no 'path' \(it has: 'file'\)", "'path' .* is 3"],
        strict=True,
    ):
        with pytest.raises(RequestError, match=said):
            raise item.error


def test_a_table_without_paths_is_refused_before_anything_runs(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("file,question\na.png,Q?\n")
    with pytest.raises(RequestError, match="found the columns file, question; expected one named"):
        ItemSource(path)


def test_python_iterables_give_single_items(folder):
    rows = [folder / "c.png", {"path": ["a.png", "b.wav"], "questions": ["One?", "Two?"]}, 7]
    plain, several, bad = ItemSource(rows)
    assert plain.paths == (str(folder / "c.png"),)
    assert (several.name, several.questions) == ("a.png + b.wav", ("One?", "Two?"))
    assert (bad.name, str(bad.error)[:17]) == ("item 3", "An item is a int;")
    assert ItemSource(iter(rows)).count() is None


@given(st.lists(st.text(min_size=1), unique=True), st.integers(1, 5))
def test_shards_are_disjoint_and_together_everything(names, n):
    shards = [{name for name in names if in_shard(name, (i, n))} for i in range(1, n + 1)]
    assert sum(map(len, shards)) == len(names)
    assert set().union(*shards) == set(names)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "-1/2", "1/²", ""])
def test_shards_that_are_none_are_refused(text):
    with pytest.raises(RequestError, match=r"expected i/n with i from 1 to n"):
        parse_shard(text)


def test_the_hash_is_of_the_bytes_not_of_the_name(folder):
    def hashed(*files):
        return content_hash([str(file) for file in files], MediaLimits(), None)

    copy = folder / "copy.png"
    copy.write_bytes((folder / "c.png").read_bytes())
    other = folder / "b" / "deep" / "a.jpg"
    assert hashed(copy) == hashed(folder / "c.png") != hashed(other)
    assert hashed(copy, other) != hashed(other, copy)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("path\ncaf\u00e9.png\n".encode("cp1252"), 'no UTF-8 .*; save the file as "CSV UTF-8"'),
        (b"path\n" + b"x" * 200_000, "line 2 is no CSV"),
    ],
)
def test_a_csv_that_cannot_be_read_is_refused_before_anything_runs(tmp_path, data, message):
    (tmp_path / "m.csv").write_bytes(data)
    with pytest.raises(RequestError, match=message):
        ItemSource(tmp_path / "m.csv")
