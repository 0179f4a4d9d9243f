"""Media from the child process are those of the gateway; its hangs and crashes end there."""

import os
import signal
import subprocess
import sys
import threading

import PIL.Image
import pytest
import torch

from omni.errors import CorruptMediaError, MediaNotFoundError, MediaTimeoutError
from omni.media import Video, load_media
from omni.media.isolated import Decoder
from tests.support import media as samples


@pytest.fixture(scope="module")
def decoder():
    with Decoder(timeout_s=120) as decoder:
        yield decoder


def both(decoder, path):
    return decoder.open(str(path)), load_media(str(path))


def test_pictures_frames_sound_and_pages_are_those_of_the_gateway(decoder, folder):
    found, expected = both(decoder, folder / "picture.png")
    assert found.name == expected.name
    assert torch.equal(found.pixels, expected.pixels)

    found, expected = both(decoder, folder / "clip.mp4")
    plan = expected.plan(num_frames=5)
    assert found.plan(num_frames=5) == plan
    frames = list(found.frames(plan))
    assert all(torch.equal(a, b) for a, b in zip(frames, expected.frames(plan), strict=True))
    assert torch.equal(found.audio().waveform(), expected.audio().waveform())

    found, expected = both(decoder, folder / "tone.wav")
    assert (found.source_sampling_rate, found.num_source_channels) == (8_000, 1)
    assert torch.equal(found.waveform(), expected.waveform())

    found, expected = both(decoder, folder / "two.pdf")
    assert found.num_pages == 2
    assert found.page_size_points(1) == expected.page_size_points(1)
    assert torch.equal(found.render(1, dpi=40).pixels, expected.render(1, dpi=40).pixels)


def test_two_videos_may_be_read_in_turns_and_left_unfinished(decoder, folder):
    video, expected = both(decoder, folder / "clip.mp4")
    plan = expected.plan()
    first, second = video.frames(plan), video.frames(plan)
    for frame in list(expected.frames(plan))[:3]:
        assert torch.equal(next(first), frame)
        assert torch.equal(next(second), frame)
    first.close()
    assert torch.equal(next(second), list(expected.frames(plan))[3])


@pytest.mark.parametrize("name", ["broken.png", "missing.png"])
def test_errors_are_those_of_the_gateway(decoder, folder, name):
    path = str(folder / name)
    with pytest.raises((CorruptMediaError, MediaNotFoundError)) as expected:
        load_media(path)
    with pytest.raises(type(expected.value)) as found:
        decoder.open(path)
    assert str(found.value) == str(expected.value)


def test_what_hangs_is_stopped_and_what_crashes_is_an_error_of_that_medium(decoder, folder):
    path = str(folder / "clip.mp4")
    video = decoder.open(path)
    assert isinstance(video, Video)
    plan = video.plan()
    frames, expected = video.frames(plan), list(load_media(path).frames(plan))
    found = [next(frames)]
    stopped = decoder.process.pid
    os.kill(stopped, signal.SIGSTOP)  # as a decoder that never comes back
    decoder.timeout_s = 0.5
    try:
        with pytest.raises(
            MediaTimeoutError, match=r"clip.mp4: its decoder gave nothing for 0.5 s"
        ):
            decoder.open(path)
    finally:
        decoder.timeout_s = 120
    assert decoder.open(path).num_frames == 24  # in a new child
    assert decoder.process.pid != stopped
    found += list(frames)  # goes on there
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    os.kill(decoder.process.pid, signal.SIGSEGV)
    with pytest.raises(CorruptMediaError, match=r"clip.mp4: its decoder crashed \(SIGSEGV\)"):
        decoder.open(path)


def test_warnings_of_the_gateway_come_along(decoder, tmp_path):
    path = tmp_path / "a.gif"
    still, *moving = [PIL.Image.fromarray(frame) for frame in samples.moving_square(3)]
    still.save(path, save_all=True, append_images=moving)
    with pytest.warns(UserWarning, match=r"a.gif: found an animation, of which the first frame"):
        decoder.open(str(path))


def test_a_file_that_was_written_anew_is_opened_anew(decoder, tmp_path):
    clip, pages = tmp_path / "clip.mp4", tmp_path / "pages.pdf"
    for length in (12, 24):
        samples.write_video(clip, samples.moving_square(length), fps=12)
        samples.write_pdf(pages, [["page"]] * length)
        assert decoder.open(str(clip)).info.num_frames == length
        assert decoder.open(str(pages)).num_pages == length


def test_the_child_ends_with_its_parent(folder):
    decoder = Decoder()
    decoder.open(str(folder / "picture.png"))
    child = decoder.process
    child.stdin.close()  # as the death of this process would
    assert child.wait(timeout=60) == 0
    child.stdout.close()


def test_threads_may_share_a_decoder(decoder, folder):
    path = str(folder / "clip.mp4")
    expected = list(load_media(path).frames(load_media(path).plan()))
    wrong: list[str] = []

    def read(kind):
        for _ in range(5):
            if kind == "video":
                video = decoder.open(path)
                found = list(video.frames(video.plan()))
                if not all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)):
                    wrong.append(kind)
            elif decoder.open(str(folder / "tone.wav")).num_samples != 24_000:
                wrong.append(kind)

    threads = [threading.Thread(target=read, args=(kind,)) for kind in ("video", "audio", "video")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_the_child_does_without_pytorch():
    code = "import sys, omni.media.isolated_process; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
