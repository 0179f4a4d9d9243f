"""Videos are known exactly before decoding, and every reader gives the same frames."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omni.errors import (
    CorruptMediaError,
    MediaAccessError,
    MediaLimitError,
    RequestError,
    UnsupportedMediaError,
)
from omni.media import FramePlan, MediaLimits, Video, load_media, plan_frames
from tests.support.media import moving_square, sine, write_image, write_video, write_wav

B_FRAMES = {"bf": "3", "g": "12", "x264-params": "scenecut=0"}


def video_of(source: object, **options: object) -> Video:
    media = load_media(source, **options)
    assert isinstance(media, Video)
    return media


def frames_of(video: Video, **options: object) -> list[np.ndarray]:
    return [frame.numpy() for frame in video.frames(video.plan(**options))]


def every_frame(path: Path) -> list[np.ndarray]:
    """All frames by the plainest means, as a reference."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


class TestPlan:
    def test_examples_of_the_released_loader(self) -> None:
        assert plan_frames(300, 10.0, fps=1) == (0, 33, 66, 99, 132, 166, 199, 232, 265, 299)
        assert plan_frames(900, 30.0, num_frames=8) == (0, 128, 256, 385, 513, 642, 770, 899)
        assert plan_frames(300, 10.0, fps=1, num_frames=4) == (0, 99, 199, 299)
        assert plan_frames(300, 10.0, fps=0.01) == (0,)
        assert plan_frames(5, 1.0) == (0, 1, 2, 3, 4)
        assert plan_frames(5, 1.0, fps=30) == (0, 1, 2, 3, 4)

    @given(
        total=st.integers(1, 5_000),
        rate=st.floats(0.5, 120),
        fps=st.none() | st.floats(0.01, 60),
        num_frames=st.none() | st.integers(1, 600),
    )
    def test_laws(self, total: int, rate: float, fps: float | None, num_frames: int | None) -> None:
        indices = plan_frames(total, total / rate, fps=fps, num_frames=num_frames)
        assert 1 <= len(indices) <= min(total, num_frames or total)
        assert list(indices) == sorted(set(indices))
        assert indices[0] == 0
        assert indices[-1] == total - 1 or len(indices) == 1
        if fps is not None:
            assert len(indices) <= max(1, total / rate * fps + 0.02)

    @pytest.mark.parametrize(
        "options", [{"fps": 0.0}, {"fps": -1.0}, {"num_frames": 0}, {"fps": float("nan")}]
    )
    def test_impossible_rates_are_refused(self, options: dict) -> None:
        with pytest.raises(RequestError, match="expected"):
            plan_frames(10, 1.0, **options)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("x.mp4", "libx264", B_FRAMES),
        ("x.mkv", "libx264", B_FRAMES),
        ("x.mov", "libx264", {}),
        ("x.ts", "libx264", B_FRAMES),
        ("x.avi", "mpeg4", {"bf": "2"}),
        ("x.avi", "libx264", B_FRAMES),
        ("x.webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "8"}),
        ("x.webm", "libvpx-vp9", {"cpu-used": "8", "deadline": "realtime"}),
        ("x.mkv", "libsvtav1", {"preset": "12", "svtav1-params": "logical-processors=1"}),
        ("x.mp4", "libx265", {"x265-params": "log-level=none:pools=1"}),
        ("x.flv", "flv", {}),
        ("x.mpg", "mpeg2video", {"bf": "2"}),
        ("x.h264", "libx264", B_FRAMES),
    ],
)
def test_every_container_is_counted_exactly_and_sampled_like_a_plain_decode(
    name: str, codec: str, options: dict[str, str], tmp_path: Path
) -> None:
    path = write_video(
        tmp_path / name,
        moving_square(30),
        25,
        codec=codec,
        options=options,
    )
    video = video_of(path)
    reference = every_frame(path)
    assert (video.num_frames, video.width, video.height) == (30, 64, 48)
    assert video.fps == pytest.approx(25)
    assert video.duration_s == pytest.approx(1.2)
    assert video.info.frame_times_s == pytest.approx(np.arange(30) / 25, abs=1.1e-3)
    assert not video.has_audio
    assert video.audio() is None
    assert all(np.array_equal(a, b) for a, b in zip(frames_of(video), reference, strict=True))
    for num_frames in (1, 2, 7):
        plan = video.plan(num_frames=num_frames)
        found = list(video.frames(plan))
        assert all(
            np.array_equal(frame.numpy(), reference[index])
            for frame, index in zip(found, plan.indices, strict=True)
        )


def same_frames(path: Path, plans: Sequence[dict]) -> None:
    by_pyav, by_decord = video_of(path), video_of(path, video_backend="decord")
    for options in plans:
        plan = by_pyav.plan(**options)
        assert by_decord.plan(**options) == plan
        pairs = zip(by_pyav.frames(plan), by_decord.frames(plan), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


PLANS = ({"num_frames": 1}, {"num_frames": 5}, {"fps": 7}, {})


@pytest.mark.parametrize("name", ["x.mp4", "x.mkv", "x.avi"])
def test_decord_and_pyav_give_the_same_frames_with_b_frames(name: str, tmp_path: Path) -> None:
    pytest.importorskip("decord")
    same_frames(write_video(tmp_path / name, moving_square(60), 30, options=B_FRAMES), PLANS)


def test_decord_and_pyav_give_the_same_frames_at_a_variable_rate(tmp_path: Path) -> None:
    pytest.importorskip("decord")
    times = np.cumsum(np.random.default_rng(0).choice([0.02, 0.04, 0.2], size=40))
    path = write_video(
        tmp_path / "x.mp4", moving_square(40), 25, options=B_FRAMES, times_s=list(times)
    )
    same_frames(path, PLANS)


def test_decord_reads_bytes_and_refuses_what_it_garbles(tmp_path: Path) -> None:
    pytest.importorskip("decord")
    path = write_video(tmp_path / "x.mp4", moving_square(8))
    assert len(frames_of(video_of(path.read_bytes(), video_backend="decord"))) == 8
    turned = write_video(tmp_path / "r.mp4", moving_square(8), rotation=90)
    with pytest.raises(UnsupportedMediaError, match="turned by 90 degrees, which decord garbles"):
        load_media(turned, video_backend="decord")


def test_without_decord_the_message_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    path = write_video(tmp_path / "x.mp4", moving_square(4))
    with pytest.raises(MediaAccessError, match="pip install decord"):
        load_media(path, video_backend="decord")
    assert video_of(path).num_frames == 4


def test_a_variable_rate_keeps_true_times(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.15, 0.5, 0.9, 1.0, 2.0, 2.04]
    for name, rounding in (("x.mp4", 1e-4), ("x.mkv", 1.1e-3)):
        path = write_video(tmp_path / name, moving_square(8), 25, times_s=times)
        video = video_of(path)
        plan = video.plan()
        assert plan.timestamps_s == pytest.approx(times, abs=rounding)
        assert plan.indices == tuple(range(8))
        assert video.fps == pytest.approx(8 / video.duration_s)
        assert 2.04 < video.duration_s < 2.4


def test_times_start_at_the_first_frame(tmp_path: Path) -> None:
    times = [5 + index / 10 for index in range(10)]
    video = video_of(write_video(tmp_path / "x.mkv", moving_square(10), 10, times_s=times))
    assert video.plan().timestamps_s == pytest.approx(
        [index / 10 for index in range(10)], abs=1.1e-3
    )
    assert video.duration_s == pytest.approx(1.0, abs=0.01)


def test_frames_cut_away_by_an_edit_list_are_not_counted(tmp_path: Path) -> None:
    """A clip cut without encoding keeps earlier frames, which are decoded but never shown."""
    whole = write_video(tmp_path / "whole.mp4", moving_square(30), 30)
    cut = tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(cut), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                shift = round(0.5 / packet.time_base)
                packet.pts, packet.dts, packet.stream = (
                    packet.pts - shift,
                    packet.dts - shift,
                    stream,
                )
                target.mux(packet)
    reference = every_frame(cut)
    assert len(reference) < 30
    video = video_of(cut)
    assert video.num_frames == len(reference)
    assert all(np.array_equal(a, b) for a, b in zip(frames_of(video), reference, strict=True))


def test_streams_without_a_duration_are_measured(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "live.webm",
        moving_square(20),
        10,
        codec="libvpx",
        container_options={"live": "1"},
    )
    with av.open(str(path)) as container:
        assert container.duration is None or container.streams.video[0].duration is None
    video = video_of(path)
    assert (video.num_frames, video.duration_s) == (20, pytest.approx(2.0, abs=0.02))


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation_is_applied(rotation: int, tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.mp4", moving_square(4), rotation=rotation)
    video = video_of(path)
    assert video.info.rotation == rotation % 360
    expected = [np.rot90(frame, rotation // 90) for frame in every_frame(path)]
    assert (video.height, video.width) == expected[0].shape[:2]
    assert all(np.array_equal(a, b) for a, b in zip(frames_of(video), expected, strict=True))


def test_long_gaps_are_crossed_by_seeking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "x.mp4", moving_square(240), 30, options=B_FRAMES)
    video = video_of(path)
    plan = video.plan(num_frames=3)
    reference = every_frame(path)
    seen = []
    original = video._reader._index
    monkeypatch.setattr(
        video._reader, "_index", lambda *args: seen.append(original(*args)) or seen[-1]
    )
    found = [frame.numpy() for frame in video.frames(plan)]
    assert all(np.array_equal(f, reference[i]) for f, i in zip(found, plan.indices, strict=True))
    assert len(seen) < 60  # of 240


def test_frames_are_decoded_one_at_a_time(tmp_path: Path) -> None:
    video = video_of(write_video(tmp_path / "x.mp4", moving_square(30)))
    iterator = video.frames(video.plan())
    first = next(iterator)
    kept = first.clone()
    next(iterator)
    assert torch.equal(first, kept)  # its own memory
    iterator.close()


def test_the_sound_track_comes_with_the_video(tmp_path: Path) -> None:
    video = video_of(write_video(tmp_path / "x.mp4", moving_square(24), audio=sine(1.0)))
    assert video.has_audio
    audio = video.audio()
    assert audio is not None
    assert audio.duration_s == pytest.approx(1.0, abs=0.1)


def test_a_part_behind_the_end_of_the_sound_has_none(tmp_path: Path) -> None:
    frames = moving_square(48)
    video = video_of(write_video(tmp_path / "x.mp4", frames, audio=sine(1.0)))
    heard, silent = (video.part(start, start + 1).audio() for start in (0.5, 1.5))
    assert heard is not None
    assert heard.duration_s == pytest.approx(0.5, abs=0.1)
    assert silent is None


def test_arrays_are_videos_too() -> None:
    array = np.stack(moving_square(10))
    for form in (
        array,
        torch.from_numpy(array),
        torch.from_numpy(array).permute(0, 3, 1, 2),
        array / 255,
    ):
        video = video_of(form, fps=5)
        assert (video.num_frames, video.duration_s, video.width) == (10, 2.0, 64)
        plan = video.plan(num_frames=3)
        assert plan == FramePlan(
            indices=(0, 4, 9), timestamps_s=(0.0, 0.8, 1.8), source_fps=5.0, duration_s=2.0
        )
        for frame, index in zip(video.frames(plan), plan.indices, strict=True):
            assert np.array_equal(frame.numpy(), array[index])
    with pytest.raises(RequestError, match=r"fps=None; pass its frame rate"):
        load_media(array)
    with pytest.raises(CorruptMediaError, match="0 frames of 4x4"):
        load_media(np.zeros((0, 4, 4, 3), np.uint8), fps=5)


def test_limits_hold(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.mp4", moving_square(48), 24)
    with pytest.raises(
        MediaLimitError, match=r"found 2 seconds of video, the limit is 1; .*max_seconds"
    ):
        load_media(path, limits=MediaLimits(max_seconds=1))
    with pytest.raises(MediaLimitError, match=r"\(64x48\), the limit is 3,000; .*max_pixels"):
        load_media(path, limits=MediaLimits(max_pixels=3_000))
    video = video_of(path, limits=MediaLimits(max_frames=10))
    assert video.plan(num_frames=10).num_frames == 10
    with pytest.raises(MediaLimitError, match=r"num_frames or a lower fps.*found 48 .*limit is 10"):
        video.plan()


def test_plans_of_other_videos_are_refused(tmp_path: Path) -> None:
    short = video_of(write_video(tmp_path / "s.mp4", moving_square(4)))
    long = video_of(write_video(tmp_path / "l.mp4", moving_square(9)))
    with pytest.raises(RequestError, match="indices 0 to 8, expected them within 0 to 3"):
        short.frames(long.plan())


@pytest.mark.parametrize("name", ["x.mp4", "x.mkv", "x.avi"])
def test_truncated_videos_are_refused(name: str, tmp_path: Path) -> None:
    options = {"movflags": "faststart"} if name == "x.mp4" else {}
    path = write_video(tmp_path / name, moving_square(48), container_options=options)
    data = path.read_bytes()
    with pytest.raises(CorruptMediaError, match="ends early"):
        load_media(data[: int(len(data) * 0.8)])


def test_a_decode_that_ends_early_names_both_numbers(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.mp4", moving_square(48), options={"g": "12"})
    video = video_of(path)
    plan = video.plan(num_frames=6)
    with av.open(str(path)) as container:
        offsets = sorted(p.pos for p in container.demux(video=0) if p.size)
    data = bytearray(path.read_bytes())
    data[offsets[24] :] = bytes(len(data) - offsets[24])  # the index is kept before it
    path.write_bytes(data)
    with pytest.raises(CorruptMediaError):
        list(video.frames(plan))


def test_a_video_without_frames_is_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "x.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    with pytest.raises((CorruptMediaError, UnsupportedMediaError)):
        load_media(tmp_path / "x.mkv")


def test_a_gif_is_a_video_if_asked(tmp_path: Path) -> None:
    import PIL.Image

    frames = [PIL.Image.fromarray(frame) for frame in moving_square(5)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:], duration=100)
    video = video_of(tmp_path / "x.gif", kind="video")
    assert (video.num_frames, video.duration_s) == (5, pytest.approx(0.5))
    assert len(frames_of(video)) == 5


@pytest.mark.parametrize(
    ("extension", "options"),
    [("webp", {"lossless": True}), ("png", {}), ("avif", {}), ("png", {"default_image": True})],
)
def test_an_animated_picture_is_a_video_if_asked(tmp_path: Path, extension, options) -> None:
    import PIL.Image

    still, *moving = [PIL.Image.fromarray(frame) for frame in moving_square(6)]
    if not options.get("default_image"):
        still, moving = moving[0], moving[1:]  # else it is for programs that do not animate
    shown = [100, 200, 0, 50, 1000][: len(moving) + (not options.get("default_image"))]
    path = tmp_path / f"x.{extension}"
    still.save(path, save_all=True, append_images=moving, duration=shown, **options)
    video = video_of(path, kind="video")
    assert (video.num_frames, video.info.codec) == (5, extension)
    # A frame of no time is shown for a tenth of a second, as browsers do.
    assert video.info.frame_times_s == pytest.approx([0, 0.1, 0.3, 0.4, 0.45])
    assert video.duration_s == pytest.approx(1.45)
    found = np.stack(frames_of(video)).astype(int)
    assert np.abs(found - moving_square(6)[1:]).max() <= (24 if extension == "avif" else 0)
    [last] = video.decode([4])
    assert np.array_equal(last, found[4])
    [third] = video.part(0.3, 0.4).decode([0])
    assert np.array_equal(third, found[2])


def test_a_picture_of_one_frame_is_no_video(tmp_path: Path) -> None:
    import PIL.Image

    for name in ("x.webp", "x.png", "x.avif"):
        PIL.Image.fromarray(moving_square(1)[0]).save(tmp_path / name)
        with pytest.raises(UnsupportedMediaError, match=r"found an image .*, expected a video"):
            load_media(tmp_path / name, kind="video")


def test_an_animation_has_the_limits_of_a_video(tmp_path: Path) -> None:
    import PIL.Image

    frames = [PIL.Image.fromarray(frame) for frame in moving_square(5)]
    path = tmp_path / "x.webp"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=60_000)
    with pytest.raises(MediaLimitError, match="found 180 seconds of video, the limit is 150"):
        load_media(path, kind="video", limits=MediaLimits(max_seconds=150))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CorruptMediaError, match=r"x.webp: .*ends early"):
        load_media(path, kind="video")


def test_a_recording_is_not_a_video(tmp_path: Path) -> None:
    sound = write_wav(tmp_path / "x.wav", sine(0.5))
    assert load_media(sound, kind="audio").duration_s == 0.5
    with pytest.raises(UnsupportedMediaError, match=r"found audio \(WAV\), expected a video"):
        load_media(sound, kind="video")


def test_decoders_keep_their_noise_to_themselves(tmp_path: Path) -> None:
    """In a process of its own: FFmpeg and others write to the descriptor, not to sys.stderr."""
    good = write_video(tmp_path / "x.mp4", moving_square(24), audio=sine(1.0)).read_bytes()
    paths = []
    for number, place in enumerate((0.3, 0.6, 0.9)):
        damaged = bytearray(good)
        damaged[int(len(good) * place) : int(len(good) * place) + 40] = bytes(40)
        paths.append(tmp_path / f"{number}.mp4")
        paths[-1].write_bytes(damaged)
    paths.append(write_image(tmp_path / "cut.jpg", moving_square(1)[0]))
    paths[-1].write_bytes(paths[-1].read_bytes()[:300])
    script = (
        "import sys\nfrom omni.errors import OmniError\nfrom omni.media import load_media\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n        media = load_media(path)\n        list(media.frames(media.plan())); "
        "media.audio()\n    except OmniError as error:\n        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
