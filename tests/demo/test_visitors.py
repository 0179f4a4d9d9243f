"""Visitors are apart, and nothing is left of one who has gone."""

from pathlib import Path

import pytest

from demo.visitors import Visitors
from omni.errors import MediaAccessError


def upload(folder: Path, name: str) -> Path:
    path = folder / "0af1" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"content")
    return path


def test_a_visitor_is_known_again_and_apart_from_others(tmp_path) -> None:
    visitors = Visitors(tmp_path)
    visitors.of("one").things["chat"] = "mine"
    assert visitors.of("one").things == {"chat": "mine"}
    assert visitors.of("two").things == {}
    assert visitors.of(None) is not visitors.of(None)
    assert len(visitors) == 2


def test_files_go_with_the_last_visitor_who_uses_them(tmp_path) -> None:
    visitors = Visitors(tmp_path)
    own, shared = upload(tmp_path, "own.png"), upload(tmp_path, "shared.png")
    visitors.add_files(visitors.of("one"), [own, shared])
    visitors.add_files(visitors.of("two"), [shared])
    visitors.forget("one")
    assert (own.exists(), shared.exists()) == (False, True)
    visitors.forget("two")
    assert not shared.exists()
    visitors.forget("two")  # twice, or never seen: nothing happens
    assert len(visitors) == 0


def test_files_that_were_not_uploaded_are_refused(tmp_path) -> None:
    folder, secret = tmp_path / "uploads", tmp_path / "secret.txt"
    folder.mkdir()
    secret.write_text("secret")
    (folder / "link.txt").symlink_to(secret)
    visitors = Visitors(folder)
    for path in (secret, folder / ".." / "secret.txt", folder / "link.txt"):
        with pytest.raises(MediaAccessError, match=f"{path.name} was not uploaded here"):
            visitors.add_files(visitors.of("one"), [path])
    visitors.forget("one")
    assert secret.exists()


def test_idle_visitors_are_forgotten(tmp_path) -> None:
    visitors = Visitors(tmp_path, idle_s=60)
    visitors.of("gone").seen -= 61
    visitors.of("here")
    assert len(visitors) == 1


def test_visitors_read_names_of_files_without_the_folder(tmp_path) -> None:
    visitors = Visitors(tmp_path)
    path = upload(tmp_path, "a b.png")
    assert visitors.without_folder(f"{path}: found nothing; {path} page 2") == (
        "a b.png: found nothing; a b.png page 2"
    )
