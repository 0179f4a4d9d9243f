"""Media that are known from an earlier time are those of the file, which is opened when needed."""

import json

import pytest
import torch

from omni.errors import MediaNotFoundError, RequestError
from omni.media.isolated import Decoder
from omni.media.known import describe, recall
from tests.support import media as samples
from tests.support.tiny_omni import picture


class CountingDecoder(Decoder):
    """Remembers what it was asked."""

    asked: list

    def call(self, path, command, *arguments):
        self.asked.append(command)
        return super().call(path, command, *arguments)


@pytest.fixture(scope="module")
def decoder():
    with CountingDecoder() as decoder:
        yield decoder


@pytest.fixture
def both(decoder, folder):
    def both(name):
        """The file, and what is known of it; the decoder has been asked nothing since."""
        opened = decoder.open(str(folder / name))
        facts = json.loads(json.dumps(describe(opened)))
        decoder.asked = []
        return opened, recall(decoder, str(folder / name), facts)

    decoder.asked = []
    return both


def test_a_picture_is_opened_for_its_pixels_once(both, decoder):
    opened, known = both("picture.png")
    assert (known.name, known.height, known.width) == (opened.name, 40, 60)
    assert decoder.asked == []
    assert torch.equal(known.pixels, opened.pixels)
    assert torch.equal(known.pixels, opened.pixels)
    assert decoder.asked == ["open"]


def test_a_recording_is_opened_for_its_sound(both, decoder):
    opened, known = both("tone.wav")
    for name in ("name", "num_samples", "duration_s", "source_sampling_rate"):
        assert getattr(known, name) == getattr(opened, name)
    assert known.num_source_channels == opened.num_source_channels == 1
    assert decoder.asked == []
    assert torch.equal(known.waveform(), opened.waveform())
    assert torch.equal(known.part(0.5, 1.0).waveform(), opened.part(0.5, 1.0).waveform())
    assert decoder.asked.count("open") == 1


def test_a_video_is_planned_without_being_opened(both, decoder):
    opened, known = both("clip.mp4")
    plan = known.plan(num_frames=5)
    assert plan == opened.plan(num_frames=5)
    assert (known.height, known.width, known.has_audio) == (opened.height, opened.width, True)
    assert decoder.asked == []
    frames = zip(known.frames(plan), opened.frames(plan), strict=True)
    assert all(torch.equal(a, b) for a, b in frames)
    assert torch.equal(known.audio().waveform(), opened.audio().waveform())


def test_a_document_knows_the_sizes_of_its_pages(both, decoder):
    opened, known = both("two.pdf")
    assert decoder.asked == []
    assert known.num_pages == 2
    sizes = [known.page_size_points(index) for index in range(2)]
    assert decoder.asked == []
    assert sizes == [opened.page_size_points(index) for index in range(2)]
    assert torch.equal(known.render(1, dpi=20).pixels, opened.render(1, dpi=20).pixels)
    with pytest.raises(RequestError, match="found page index 2, expected 0 to 1"):
        known.page_size_points(2)


def test_a_file_that_has_gone_raises_when_it_is_looked_at(decoder, tmp_path):
    path = tmp_path / "picture.png"
    samples.write_image(path, picture(40, 60))
    known = recall(decoder, str(path), describe(decoder.open(str(path))))
    path.unlink()
    assert known.width == 60
    with pytest.raises(MediaNotFoundError):
        known.pixels  # noqa: B018
