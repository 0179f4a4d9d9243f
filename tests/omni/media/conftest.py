"""A folder with one file of each kind, and a damaged one."""

import pytest

from tests.support import media as samples
from tests.support.tiny_omni import picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    samples.write_image(folder / "picture.png", picture(40, 60))
    samples.write_video(
        folder / "clip.mp4", samples.moving_square(24), fps=12, audio=samples.sine(2.0)
    )
    samples.write_wav(folder / "tone.wav", samples.sine(1.5, sampling_rate=8_000), 8_000)
    samples.write_pdf(folder / "two.pdf", [["one"], ["two"]])
    (folder / "broken.png").write_bytes((folder / "picture.png").read_bytes()[:100])
    return folder
