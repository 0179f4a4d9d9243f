"""What stage 2 of `omni-tiny` talks about: media with known facts.

A `Subject` is one medium as the product's gateway opens it, with the facts that are true of it.
Pictures, clips and recordings come from the data code of the towers, so both stages hold out the
same speakers, photographs and fonts.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from numpy.random import Generator
from PIL import Image as Picture

from finetune.tiny.audio_data import (
    DIGITS,
    SAMPLE_RATE,
    SILENCE,
    Clip,
    augment,
    background,
    draw_word,
    group_by_label,
    load_clips,
    sort_words,
    word_sequence,
)
from finetune.tiny.audio_pool import SEQUENCE_SECONDS, SOURCE_WEIGHTS
from finetune.tiny.audio_voices import synthetic_clips
from finetune.tiny.bands import MAX_LETTERS, cut_band, render_band
from finetune.tiny.documents import random_page
from finetune.tiny.drawing import draw_frame, random_motion, random_still
from finetune.tiny.fonts import Fonts, Split, find_fonts
from finetune.tiny.printed import render_line
from finetune.tiny.receipts import cut, receipt_lines, receipt_pages, receipt_pieces
from finetune.tiny.scenes import random_events, random_scene
from finetune.tiny.sounded import MAX_WORDS, random_sounded
from finetune.tiny.text_rows import ENLARGED, SIDE_MARGIN
from finetune.tiny.vision_augment import augment_digit, augment_photo
from finetune.tiny.vision_data import PHOTO_CLASSES, cifar_arrays, mnist_arrays
from omni.media import Audio, Image, MediaLimits, Video, load_media
from omni.media.video import ArrayReader

FPS = 4  # frames a second that the checkpoint samples; drawn clips have about as many

# How often kinds of subjects are drawn for training, in proportion. Reading is the hardest.
SHARES = {
    "line": 0.16,
    "band": 0.25,
    "photo": 0.09,
    "word": 0.18,
    "digits": 0.02,
    "handwritten": 0.07,
    "clip": 0.08,
    "still": 0.04,
    "scene": 0.06,
    "events": 0.05,
    "sounded": 0.08,
    "page": 0.12,
}
# Of the printed lines in training, those of receipts: short lines, and pieces of rows.
RECEIPT_SHARE, PIECE_SHARE = 0.25, 0.35
LARGE_PAGE_SHARE = 0.4  # of the pages in training
BAND_RECEIPT_SHARE = 0.5  # of the bands, also of those held out


class Subject(NamedTuple):
    """One medium, and what is true of it.

    Attributes:
        task: A key of `SHARES`.
        medium: As `omni.media.load_media` gives it.
        facts: `label`; for shapes `colour`, `shape` and, in clips, `direction`; for scenes
            `shapes`; for events `showings`, and `seconds` from frame to frame; for clips with
            sound `said`; for pages `page`.
        encoded: The clip's file, where it went through a codec.
        edges: Shares of the width between the characters of a printed line, where they are known.
    """

    task: str
    medium: Audio | Image | Video
    facts: dict[str, Any]
    encoded: bytes | None = None
    edges: np.ndarray | None = None


class Subjects:
    """Draws subjects of one split.

    Args:
        data: Folder of the training data.
        split: `train` draws augmented subjects without end; `validation` draws from what is
            held out, as it is.
        voices: File of the synthetic voices, from `finetune.tiny.audio_voices`; training only.
        band_letters: Most letters of a band; who has read short lines only begins with few.
    """

    def __init__(
        self,
        data: Path,
        split: Split,
        voices: Path | None = None,
        *,
        band_letters: int = MAX_LETTERS,
    ) -> None:
        self.data, self.split, self.band_letters = data, split, band_letters
        self.is_training = split == "train"
        self.clips = load_clips(data, split)
        if self.is_training and voices is not None:
            self.clips += synthetic_clips(cache=voices)
        self.noises = [clip.waveform for clip in self.clips if clip.label == SILENCE]
        self._shelf = sort_words(self.clips, SOURCE_WEIGHTS)
        self._makers: dict[str, Callable[[Generator], Subject]] = {
            "line": self.line,
            "band": self.band,
            "photo": self.photo,
            "word": self.word,
            "digits": self.digits,
            "handwritten": self.handwritten,
            "clip": self.clip,
            "still": self.still,
            "scene": self.scene,
            "events": self.events,
            "sounded": self.sounded,
            "page": self.page,
        }

    def draw(self, task: str, rng: Generator) -> Subject:
        """Draw one subject.

        Args:
            task: A key of `SHARES`.
            rng: Source of randomness.
        """
        return self._makers[task](rng)

    def line(self, rng: Generator) -> Subject:
        """Draw a printed line, in the fonts of the split; in training often one of a receipt."""
        kind = rng.random() if self.is_training else 1.0
        if kind < RECEIPT_SHARE:
            return self.receipt_line(
                int(rng.integers(len(receipt_lines(self.data, self.split)))), rng
            )
        if kind < RECEIPT_SHARE + PIECE_SHARE:
            return self.receipt_piece(rng)
        return self.printed_line(rng, find_fonts(self.split))

    def printed_line(self, rng: Generator, fonts: Fonts) -> Subject:
        """Draw a printed line in one of some fonts."""
        line = render_line(rng, fonts)
        edges = line.edges / line.image.shape[1]
        return _picture("line", line.image, {"label": line.text})._replace(edges=edges)

    def receipt_line(self, index: int, rng: Generator | None = None) -> Subject:
        """Cut a short line out of its receipt, less exactly if `rng` is given."""
        crop = receipt_lines(self.data, self.split)[index]
        edges = np.linspace(0, 1, len(crop.text) + 1)  # nearly: receipts are often typewritten
        return _picture("line", cut(crop, rng), {"label": crop.text})._replace(edges=edges)

    def receipt_piece(self, rng: Generator) -> Subject:
        """Cut some words out of a row of a receipt, and enlarge them as `text_rows` does."""
        crops = receipt_pieces(self.data, self.split)
        crop = crops[int(rng.integers(len(crops)))]
        piece, scale = Picture.fromarray(cut(crop, rng)), ENLARGED * rng.uniform(0.7, 1.1)
        size = max(1, round(scale * piece.width)), max(1, round(scale * piece.height))
        pixels = np.asarray(piece.resize(size, Picture.Resampling.BICUBIC))
        side = SIDE_MARGIN / (crop.box[2] - crop.box[0]) * (crop.box[3] - crop.box[1])
        edges = np.linspace(min(side, 0.2), 1 - min(side, 0.2), len(crop.text) + 1)
        return _picture("line", pixels, {"label": crop.text})._replace(edges=edges)

    def band(self, rng: Generator) -> Subject:
        """Draw a strip of a page with a long line or a few; often one of a receipt."""
        pages, band = receipt_pages(self.data, self.split), None
        is_real = rng.random() < BAND_RECEIPT_SHARE
        while band is None or len(band.text) > self.band_letters:
            if is_real:
                band = cut_band(rng, pages[int(rng.integers(len(pages)))])
            else:
                band = render_band(rng, find_fonts(self.split))
        return _picture("band", band.image, {"label": band.text})._replace(edges=band.edges)

    def photo(self, rng: Generator, index: int | None = None) -> Subject:
        """Draw a photograph of one of ten objects."""
        pictures, labels = cifar_arrays(self.data, self.split)
        index = int(rng.integers(len(labels))) if index is None else index
        pixels = pictures[index]
        if self.is_training:
            pixels = augment_photo(rng, pixels)
            if rng.random() < 0.1:  # the same photograph as people often send it: enlarged
                pixels = _enlarged(rng, pixels, 48, 129)
        return _picture("photo", pixels, {"label": PHOTO_CLASSES[labels[index]]})

    def handwritten(self, rng: Generator, index: int | None = None) -> Subject:
        """Draw a handwritten digit."""
        pictures, labels = mnist_arrays(self.data, self.split)
        index = int(rng.integers(len(labels))) if index is None else index
        if self.is_training:
            pixels = augment_digit(rng, pictures[index])
            if rng.random() < 0.2:
                pixels = _enlarged(rng, pixels, 64, 225)
        else:
            pixels = np.repeat(pictures[index][..., None], 3, axis=-1)
        return _picture("handwritten", pixels, {"label": str(labels[index])})

    def still(self, rng: Generator) -> Subject:
        """Draw a picture of one coloured shape."""
        side = int(rng.integers(129, 300)) if rng.random() < 0.15 else 0
        pixels, facts = random_still(rng, (side, side) if side else None)
        return _picture("still", pixels, facts)

    def clip(self, rng: Generator) -> Subject:
        """Draw a clip of 4 to 17 sampled frames in which one shape moves; half of them encoded."""
        encoded = not self.is_training or rng.random() < 0.5
        if encoded:  # codecs want even sides
            height, width = (2 * int(side) for side in rng.integers(32, 81, 2))
            height = height if rng.random() < 0.4 else width
        else:
            height, width = (int(side) for side in rng.integers(64, 161, 2))
            width = width if rng.random() < 0.4 else height
        motion = random_motion(rng, (height, width))
        if rng.random() < 0.7:  # shorter clips: half of the way or more in fewer frames
            count = int(rng.integers(4, motion.num_frames + 1))
            speed = rng.uniform(0.5, 1.0) * (motion.num_frames - 1) / (count - 1)
            motion = motion._replace(
                num_frames=count, step=(motion.step[0] * speed, motion.step[1] * speed)
            )
        facts = {"colour": motion.colour, "shape": motion.shape, "direction": motion.direction}
        if not encoded:
            frames = [draw_frame(rng, motion, i) for i in range(motion.num_frames)]
            rate = float(rng.uniform(2.0, FPS))  # all frames are taken, at various times
            return _subject("clip", np.stack(frames), facts, fps=rate)
        repeat = int(rng.integers(1, 4))  # source frames for one that is sampled
        motion = motion._replace(
            num_frames=motion.num_frames * repeat,
            step=(motion.step[0] / repeat, motion.step[1] / repeat),
        )
        frames = [draw_frame(rng, motion, i) for i in range(motion.num_frames)]
        return _subject("clip", encode_clip(frames, FPS * repeat), facts)

    def scene(self, rng: Generator) -> Subject:
        """Draw a picture with several shapes."""
        pixels, shapes = random_scene(rng)
        return _picture("scene", pixels, {"shapes": shapes})

    def events(self, rng: Generator) -> Subject:
        """Draw a clip in which shapes come and go; half of them encoded."""
        frames, showings = random_events(rng)
        if self.is_training and rng.random() < 0.5:
            rate = float(rng.uniform(2.0, FPS))
            facts = {"showings": showings, "seconds": 1 / rate}
            return _subject("events", frames, facts, fps=rate)
        even = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
        facts = {"showings": showings, "seconds": 1 / FPS}
        return _subject("events", encode_clip(list(even), FPS), facts)

    def sounded(self, rng: Generator) -> Subject:
        """Draw a clip in which a word is said while each shape is seen; in training half encoded.

        Those that are not encoded have as many tokens as if they were.
        """
        wanted, words = int(rng.integers(1, MAX_WORDS + 1)), dict[str, Clip]()
        while len(words) < wanted:
            clip = draw_word(rng, self._shelf)
            words.setdefault(clip.label, clip)
        noises = self.noises if self.is_training else None
        frames, waveform, said = random_sounded(rng, list(words.values()), FPS, noises)
        if self.is_training and rng.random() < 0.5:
            return Subject("sounded", _with_sound(frames, waveform), {"said": said})
        return _subject("sounded", encode_clip(list(frames), FPS, waveform), {"said": said})

    def page(self, rng: Generator, *, large: bool | None = None) -> Subject:
        """Draw a page, in the fonts and words of the split.

        Args:
            rng: Source of randomness.
            large: As of `random_page`; by default some are in training, and none are held out.
        """
        if large is None:
            large = self.is_training and rng.random() < LARGE_PAGE_SHARE
        pixels, page = random_page(rng, find_fonts(self.split), self.split, large=large)
        return _picture("page", pixels, {"page": page})

    def word(self, rng: Generator, clip: Clip | None = None) -> Subject:
        """Draw a recording of one word, or now and then of none."""
        if self.is_training and rng.random() < 0.03:
            noise = background(rng, int(rng.integers(4_000, 20_000)), self.noises)
            loudness = 10 ** (-rng.uniform(10, 50) / 20) / max(float(noise.std()), 1e-6)
            return _recording("word", noise * loudness, {"label": SILENCE})
        clip = draw_word(rng, self._shelf) if clip is None else clip
        waveform = clip.waveform
        if self.is_training:
            waveform = augment(rng, waveform, self.noises)
        return _recording("word", waveform, {"label": clip.label})

    def digits(self, rng: Generator) -> Subject:
        """Draw a recording of two to four digits, all from one collection."""
        sources = sorted({clip.source for clip in self.clips})
        waveform, words = word_sequence(rng, self._takes(str(rng.choice(sources))))
        if self.is_training:
            waveform = augment(rng, waveform, self.noises, room_seconds=SEQUENCE_SECONDS)
        return _recording("digits", waveform, {"label": " ".join(words)})

    @cache  # noqa: B019 - lives as long as the recordings it sorts
    def _takes(self, source: str) -> dict[str, list[np.ndarray]]:
        return group_by_label([c for c in self.clips if c.source == source and c.label in DIGITS])


def encode_clip(
    frames: Sequence[np.ndarray], fps: int, waveform: np.ndarray | None = None
) -> bytes:
    """Encode frames as H.264 in MP4, as people send clips, and sound as AAC.

    Args:
        frames: uint8 RGB with even sides.
        fps: Frames a second.
        waveform: Sound, mono at 16 kHz.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        track = (
            None if waveform is None else container.add_stream("aac", SAMPLE_RATE, layout="mono")
        )
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
        if waveform is not None and track is not None:
            sound = av.AudioFrame.from_ndarray(waveform[None], format="fltp", layout="mono")
            sound.sample_rate, sound.time_base, sound.pts = SAMPLE_RATE, Fraction(1, SAMPLE_RATE), 0
            container.mux(track.encode(sound))
            container.mux(track.encode())
    return buffer.getvalue()


def _with_sound(frames: np.ndarray, waveform: np.ndarray) -> Video:
    """A clip with a sound track that went through no codec."""
    silent = load_media(frames, fps=FPS)
    sound = load_media(waveform, sampling_rate=SAMPLE_RATE)
    assert isinstance(silent, Video)
    assert isinstance(sound, Audio)
    return Video(
        name=silent.name,
        info=replace(silent.info, has_audio=True),
        reader=ArrayReader(frames, silent.name),
        limits=MediaLimits(),
        load_audio=lambda: sound,
    )


def _picture(task: str, pixels: np.ndarray, facts: dict[str, Any]) -> Subject:
    return _subject(task, np.ascontiguousarray(pixels), facts)


def _recording(task: str, waveform: np.ndarray, facts: dict[str, Any]) -> Subject:
    samples = np.ascontiguousarray(waveform, np.float32)
    return _subject(task, samples, facts, sampling_rate=SAMPLE_RATE)


def _subject(task: str, source: Any, facts: dict[str, Any], **options: Any) -> Subject:
    medium = load_media(source, **options)
    assert isinstance(medium, Audio | Image | Video)
    return Subject(task, medium, facts, source if isinstance(source, bytes) else None)


def _enlarged(rng: Generator, pixels: np.ndarray, low: int, high: int) -> np.ndarray:
    side = int(rng.integers(low, high))
    return np.asarray(Picture.fromarray(pixels).resize((side, side), Picture.Resampling.BICUBIC))
