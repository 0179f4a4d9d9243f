"""What a newcomer touches first is there and says what it should."""

import re
import runpy
import subprocess
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

ROOT = Path(__file__).parents[1]
MEDIA = ROOT / "examples" / "media"


def test_make_without_a_target_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    result = subprocess.run(["make", "-s", "-C", ROOT], capture_output=True, text=True, check=True)
    listed = [line.split()[1] for line in result.stdout.splitlines()]
    assert listed == phony[1].split()


def test_every_sample_that_make_asks_about_is_attributed() -> None:
    asked = set(re.findall(r"\$\(MEDIA\)/(\S+)", (ROOT / "Makefile").read_text()))
    attributed = set(re.findall(r"^\| `(\S+)` \|", (MEDIA / "README.md").read_text(), re.MULTILINE))
    assert asked < attributed == {path.name for path in MEDIA.iterdir()} - {"README.md"}


def test_the_drawn_samples_are_those_of_the_script(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "examples" / "make_samples.py"))
    for name in ("ticket", "pages"):
        script[f"write_{name}"](tmp_path / f"{name}.pdf")
        assert (tmp_path / f"{name}.pdf").read_bytes() == (MEDIA / f"{name}.pdf").read_bytes()
    # Encoders differ between versions and numbers of cores: clips are compared by what they show.
    script["write_clip"](tmp_path / "clip.mp4")
    assert square_centres(tmp_path / "clip.mp4") == pytest.approx(
        square_centres(MEDIA / "clip.mp4"), abs=1
    )


def test_the_clip_shows_a_red_square_that_moves_to_the_right() -> None:
    centres = square_centres(MEDIA / "clip.mp4")
    assert len(centres) == 16
    assert all(later > earlier for earlier, later in pairwise(centres))


def test_the_dataset_samples_have_the_promised_form() -> None:
    with Image.open(MEDIA / "digit.png") as digit:
        assert digit.size == (140, 140)
    samples, rate = soundfile.read(MEDIA / "recording.wav", dtype="int16")
    assert (rate, samples.shape) == (16_000, (16_000,))
    assert np.abs(samples).max() > 10_000  # loud enough to be heard


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "adr"
    listed = re.findall(r"\]\((\d{4}-\S+\.md)\)", (folder / "README.md").read_text())
    assert listed == sorted(path.name for path in folder.glob("[0-9]*.md"))


def square_centres(path: Path) -> list[int]:
    """Column of the middle of what is red, for each frame."""
    with av.open(path) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    centres = []
    for frame in frames:
        red, green, _ = np.moveaxis(frame.astype(int), -1, 0)
        centres.append(round(np.nonzero(red - green > 90)[1].mean()))
    return centres
