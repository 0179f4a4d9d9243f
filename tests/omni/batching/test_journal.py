"""The journal gives back what was added before any cut, and goes on behind it."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni.batching.journal import Journal
from omni.errors import RequestError

KEYS = [f"{number:032x}" for number in range(6)]
VALUES = [{"answer": text} for text in ("a", "é\n", "", "\ud800", "x" * 300, '"}')]


@given(st.data())
def test_a_journal_cut_at_any_byte_has_the_whole_lines_before_and_goes_on(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        ends = [0]
        journal = Journal(path)
        for key, value in zip(KEYS, VALUES, strict=True):
            journal.add(key, value)
            ends.append(path.stat().st_size)
        journal.close()
        cut = data.draw(st.integers(0, ends[-1]))
        path.write_bytes(path.read_bytes()[:cut])
        whole = sum(end <= cut for end in ends[1:])

        journal = Journal(path)
        assert [journal.get(key) for key in KEYS] == [
            {"key": key, **value} if index < whole else None
            for index, (key, value) in enumerate(zip(KEYS, VALUES, strict=True))
        ]
        journal.add(KEYS[-1], {"answer": "again"})
        journal.close()
        journal = Journal(path)
        assert len(journal) == min(whole + 1, len(KEYS))
        assert journal.get(KEYS[-1])["answer"] == "again"
        journal.close()


def test_lines_that_are_not_ours_are_passed_over(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'[1]\n{"key": "zz"}\n\x00\x00\n{"key": 3}\n')
    journal = Journal(path)
    assert len(journal) == 0
    journal.add(KEYS[0], {"answer": "a"})
    journal.close()
    journal = Journal(path)
    assert journal.get(KEYS[0])["answer"] == "a"
    journal.close()


def test_errors_are_forgotten_on_demand(tmp_path):
    path = tmp_path / "a.jsonl"
    journal = Journal(path)
    journal.add(KEYS[0], {"answer": "a"})
    journal.add(KEYS[1], {"error": {"class": "MediaTimeoutError", "message": "late"}})
    journal.close()
    for forget in (False, True):
        journal = Journal(path, forget_errors=forget)
        assert [key in journal for key in KEYS[:2]] == [True, not forget]
        journal.close()


def test_a_journal_has_one_writer(tmp_path):
    first = Journal(tmp_path / "a.jsonl")
    with pytest.raises(RequestError, match="another process is writing it"):
        Journal(tmp_path / "a.jsonl")
    first.close()
    Journal(tmp_path / "a.jsonl").close()
