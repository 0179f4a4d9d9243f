"""Small things in large media, drawn by code: what a reducer must not lose.

    clip        a white digit, shown for three frames of ten while a coloured disc moves about
    recording   one of eight steady pure tones, 0.1 s long, among buzzes of the same eight pitches,
                sweeps and bursts of noise
    picture     a white digit, printed three times in 10 x 14 pixels each, in one corner of a page
                of any size that is full of coloured digits and discs

What the question asks for is the smaller part of what there is to see and hear: a reducer that
keeps what is striking or different from the rest keeps much else.

Everything is a function of the task, a seed and a number, so a case can be made again by anyone.
Nothing is read from disk: glyphs are drawn from a table of 5 x 7 dots.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8
from numpy.random import Generator

from omni.inputs import Modality
from omni.media import load_media

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TASKS: dict[str, Modality] = {"clip": "video", "recording": "audio", "picture": "image"}
QUESTIONS = {
    "clip": "Which digit is shown?",
    "recording": "Which tone is heard?",
    "picture": "Which digit is printed?",
}

FPS = 4.0
NUM_FRAMES, FRAME_SIZE = 10, (48, 80)  # pixels: height, width
SHOWN_FRAMES = 3
SHEET_SIZE = (112, 80)
PAGE_SIDES = (80, 96, 112, 128)
PRINTED_TIMES = 3
SAMPLE_RATE = 16_000
TOKEN_SAMPLES = 1280  # of one audio token, 80 ms
RECORDING_S, TONE_S, BURST_S = 3.0, 0.1, 0.24
TONES_HZ = tuple(float(round(hz)) for hz in np.geomspace(300, 3400, 8))

# Rows of five dots, top to bottom, as five bits each.
_GLYPHS = {
    0: (14, 17, 19, 21, 25, 17, 14),
    1: (4, 12, 4, 4, 4, 4, 14),
    2: (14, 17, 1, 2, 4, 8, 31),
    3: (31, 2, 4, 2, 1, 17, 14),
    4: (2, 6, 10, 18, 31, 2, 2),
    5: (31, 16, 30, 1, 1, 17, 14),
    6: (6, 8, 16, 30, 17, 17, 14),
    7: (31, 1, 2, 4, 8, 8, 8),
    8: (14, 17, 17, 14, 17, 17, 14),
    9: (14, 17, 17, 15, 1, 2, 12),
}
_INKS = (
    (215, 40, 40),
    (35, 150, 50),
    (45, 80, 220),
    (230, 190, 30),
    (140, 50, 170),
    (40, 180, 200),
)


# What a token can show: from 0 what is asked for, from OTHER on the same in colour or as a buzz.
OTHER, NOTHING, UNSURE = 10, 20, -100
# Pixels (or samples) of a thing from which on a token shows it: about a third of one digit.
ENOUGH = {"clip": 98, "recording": 250, "picture": 24}

_Drawn = tuple[np.ndarray, int, np.ndarray]  # medium, label, shown


class Puzzle(NamedTuple):
    """One medium with a question that a small part of it answers.

    Attributes:
        task: A key of `TASKS`.
        medium: Pixels `(h, w, 3)`, frames `(t, h, w, 3)`, or samples.
        label: What the small thing is, from 0.
        shown: What each pixel, pixel of a frame or sample shows, -1 if nothing: `(h, w)`,
            `(t, h, w)` or `(samples,)`.
    """

    task: str
    medium: np.ndarray
    label: int
    shown: Int[np.ndarray, "..."]

    @property
    def covered(self) -> Bool[np.ndarray, "..."]:
        """Where the small thing is."""
        return self.shown == self.label

    @property
    def answer(self) -> str:
        """A word of `NUMBERS`; tones are counted from one, the lowest."""
        return NUMBERS[self.label + (self.task == "recording")]

    def shares(self, grid: tuple[int, int, int]) -> Float32[np.ndarray, " cells"]:
        """Share of the small thing in each cell of a grid (t, h, w) over the medium."""
        counts = self._counts(self.label, grid)
        return (counts / counts.sum()).astype(np.float32)

    def classes(self, grid: tuple[int, int, int]) -> Int[np.ndarray, " cells"]:
        """What each cell of a grid (t, h, w) shows; `UNSURE` where there is little of it."""
        kinds = np.unique(self.shown[self.shown >= 0])
        counts = np.stack([self._counts(kind, grid) for kind in kinds])
        most = counts.max(0)
        found = np.where(most > 0, UNSURE, NOTHING)
        return np.where(most >= ENOUGH[self.task], kinds[counts.argmax(0)], found)

    def _counts(self, kind: int, grid: tuple[int, int, int]) -> Int[np.ndarray, " cells"]:
        """How many pixels or samples of each cell show something."""
        places = np.argwhere(self.shown == kind)
        if self.task == "picture":
            places = np.insert(places, 0, 0, axis=1)
        size = self.shown.shape if self.task == "clip" else (1, *self.shown.shape)
        if self.task == "recording":  # the last token may be cut
            places = np.pad(places // TOKEN_SAMPLES, ((0, 0), (0, 2)))
            places[:, 0] = places[:, 0].clip(max=grid[0] - 1)
        else:
            places = places * np.array(grid) // np.array(size)
        found = np.zeros(grid, np.int64)
        np.add.at(found, tuple(places.T), 1)
        return found.ravel()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The question as chat messages."""
        options: dict[str, Any] = {}
        if self.task == "clip":
            options = {"fps": FPS}
        elif self.task == "recording":
            options = {"sampling_rate": SAMPLE_RATE}
        opened = load_media(self.medium, **options)
        media = {"type": "media", "media": opened}
        question = {"type": "text", "text": QUESTIONS[self.task]}
        return [{"role": "user", "content": [media, question]}]

    @property
    def conversation(self) -> list[dict[str, Any]]:
        """The question and its answer, as training takes them."""
        return [*self.messages, {"role": "assistant", "content": f"{self.answer.capitalize()}."}]

    def judge(self, answer: str) -> float:
        """1 if an answer is right, else 0."""
        return float(answer.strip().rstrip(".").lower() == self.answer)


class Puzzles:
    """Puzzles of some tasks in turn, made when asked for.

    Args:
        tasks: Keys of `TASKS`.
        count: How many.
        seed: Another seed, other puzzles.
    """

    def __init__(self, tasks: tuple[str, ...], count: int, seed: int) -> None:
        self.tasks, self.count, self.seed = tasks, count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Puzzle:
        if not 0 <= index < self.count:
            raise IndexError(index)
        task = self.tasks[index % len(self.tasks)]
        return draw(task, np.random.default_rng([self.seed, list(TASKS).index(task), index]))


class Conversations:
    """The conversations of puzzles, for training.

    Args:
        puzzles: What they are about.
    """

    def __init__(self, puzzles: Puzzles) -> None:
        self.puzzles = puzzles

    def __len__(self) -> int:
        return len(self.puzzles)

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        return self.puzzles[index].conversation


def draw(task: str, rng: Generator) -> Puzzle:
    """Draw one puzzle.

    Args:
        task: A key of `TASKS`.
        rng: Source of randomness.
    """
    if task == "recording":
        tone = int(rng.integers(len(TONES_HZ)))
        return Puzzle(task, *_recording(rng, tone))
    digit = int(rng.integers(10))
    make = _clip if task == "clip" else _page
    return Puzzle(task, *make(rng, digit))


def _clip(rng: Generator, digit: int) -> _Drawn:
    height, width = FRAME_SIZE
    ground = _ground(rng, FRAME_SIZE)
    first = int(rng.integers(NUM_FRAMES - SHOWN_FRAMES + 1))
    glyph = _glyph(digit, scale=4)
    top = int(rng.integers(height - len(glyph) + 1))
    left = int(rng.integers(width - glyph.shape[1] + 1))
    ink = _INKS[int(rng.integers(len(_INKS)))]
    radius = rng.uniform(5, 8)
    place = rng.uniform((radius, radius), (height - radius, width - radius))
    angle = rng.uniform(0, 2 * np.pi)
    step = rng.uniform(3, 7) * np.array([np.sin(angle), np.cos(angle)])
    frames, covered = [], np.zeros((NUM_FRAMES, *FRAME_SIZE), bool)
    for number in range(NUM_FRAMES):
        frame = ground.copy()
        _disc(frame, place, radius, ink)
        if first <= number < first + SHOWN_FRAMES:
            covered[number, top : top + len(glyph), left : left + glyph.shape[1]] = glyph
            frame[covered[number]] = 255
        frames.append(np.clip(frame + rng.normal(0, 6, frame.shape), 0, 255).astype(np.uint8))
        place = place + step
        low, high = radius, np.array([height - radius, width - radius])
        step = np.where((place < low) | (place > high), -step, step)  # it bounces off the edges
        place = np.clip(place, low, high)
    return np.stack(frames), digit, np.where(covered, digit, -1)


def _page(rng: Generator, digit: int) -> _Drawn:
    height, width = (int(side) for side in rng.choice(PAGE_SIDES, 2))
    page = _ground(rng, (height, width))
    shown = np.full((height, width), -1)
    for _ in range(height * width // 1000):
        _disc(page, rng.uniform((0, 0), (height, width)), rng.uniform(4, 10), _any_ink(rng))
    for _ in range(height * width // 600):
        other = int(rng.integers(10))
        glyph = _glyph(other, scale=2)
        top = int(rng.integers(height - len(glyph) + 1))
        left = int(rng.integers(width - glyph.shape[1] + 1))
        box = slice(top, top + len(glyph)), slice(left, left + glyph.shape[1])
        page[box][glyph] = _any_ink(rng)
        shown[box][glyph] = OTHER + other
    glyph = np.pad(_glyph(digit, scale=2), ((0, 0), (0, 2)))
    glyph = np.tile(glyph, PRINTED_TIMES)[:, :-2]
    margin = rng.integers(0, 7, 2)
    top = int(margin[0]) if rng.random() < 0.5 else height - len(glyph) - int(margin[0])
    left = int(margin[1]) if rng.random() < 0.5 else width - glyph.shape[1] - int(margin[1])
    box = slice(top, top + len(glyph)), slice(left, left + glyph.shape[1])
    page[box][glyph] = 255
    shown[box][glyph] = digit
    noisy = np.clip(page + rng.normal(0, 6, page.shape), 0, 255).astype(np.uint8)
    return noisy, digit, shown


def _recording(rng: Generator, tone: int) -> _Drawn:
    wave = rng.normal(0, 0.01, round(RECORDING_S * SAMPLE_RATE))
    shown = np.full(len(wave), -1)

    def add(sound: np.ndarray, loudness_db: float, kind: int = -1) -> None:
        start = int(rng.integers(len(wave) - len(sound)))
        place = slice(start, start + len(sound))
        wave[place] += 10 ** (loudness_db / 20) * sound * _fade(len(sound))
        if kind >= 0:
            shown[place] = kind

    for _ in range(int(rng.integers(2, 5))):
        noise = rng.normal(0, 1, round(BURST_S * SAMPLE_RATE))
        add(noise, rng.uniform(-28, -14))
    for _ in range(int(rng.integers(6, 11))):
        low, high = rng.uniform(200, 1500), rng.uniform(2000, 5000)
        ends = (low, high) if rng.random() < 0.5 else (high, low)
        hertz = np.linspace(*ends, round(rng.uniform(0.1, 0.25) * SAMPLE_RATE))
        add(np.sin(2 * np.pi * np.cumsum(hertz) / SAMPLE_RATE), rng.uniform(-28, -18))
    for _ in range(int(rng.integers(5, 10))):
        pitch = int(rng.integers(len(TONES_HZ)))
        overtones = [_tone(rng, TONES_HZ[pitch] * n) for n in (0.5, 1, 1.5, 2)]
        add(0.7 * np.sum(overtones, axis=0), rng.uniform(-26, -18), OTHER + pitch)
    add(1.4 * _tone(rng, TONES_HZ[tone]), rng.uniform(-26, -18), tone)
    return np.clip(wave, -1, 1).astype(np.float32), tone, shown


def _tone(rng: Generator, hertz: float) -> np.ndarray:
    """A pure tone of a random phase, a little off."""
    times = np.arange(round(TONE_S * SAMPLE_RATE)) / SAMPLE_RATE
    return np.sin(2 * np.pi * (hertz * 2 ** rng.uniform(-0.1, 0.1) * times + rng.random()))


def _ground(rng: Generator, size: tuple[int, int]) -> np.ndarray:
    """A dark coarse texture, float, in no step with the grid of patches."""
    cells = rng.uniform(20, 90, (size[0] // 16 + 2, size[1] // 16 + 2, 3))
    top, left = rng.integers(16, size=2)
    return np.kron(cells, np.ones((16, 16, 1)))[top : top + size[0], left : left + size[1]]


def _disc(canvas: np.ndarray, centre: np.ndarray, radius: float, ink: tuple[int, int, int]) -> None:
    rows, columns = np.indices(canvas.shape[:2])
    inside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2
    canvas[inside] = ink


def _any_ink(rng: Generator) -> tuple[int, int, int]:
    """Any colour but a bright one: white is for what is printed."""
    red, green, blue = rng.uniform(20, 190, 3) + rng.permutation([60, 0, -20])
    return int(red), int(green), int(blue)


def _glyph(digit: int, scale: int) -> np.ndarray:
    """Which pixels a digit covers: `(7 * scale, 5 * scale)`, bool."""
    dots = [[bool(row >> (4 - column) & 1) for column in range(5)] for row in _GLYPHS[digit]]
    return np.kron(np.array(dots), np.ones((scale, scale))).astype(bool)


def _fade(length: int) -> np.ndarray:
    """Rises and falls over a tenth of the length, so that nothing clicks."""
    ramp = np.minimum(np.arange(length), np.arange(length)[::-1]) / (0.1 * length)
    return np.minimum(ramp, 1.0)


# ---- sheets: many digits at once, to learn to see ----

TOKEN_PIXELS = 16  # side of a decoder token: two patches


def draw_sheet(
    modality: Modality, rng: Generator
) -> tuple[UInt8[np.ndarray, "..."], Int[np.ndarray, " tokens"]]:
    """Draw a picture, or a clip of two equal frames, full of digits at the size of the puzzles.

    Args:
        modality: `image` or `video`.
        rng: Source of randomness.

    Returns:
        The medium, and for each token the digit of which it covers a fifth or more (of a coloured
        one `OTHER` more), `NOTHING` or `UNSURE`.
    """
    size, scale, count = (SHEET_SIZE, 2, 10) if modality == "image" else (FRAME_SIZE, 4, 3)
    sheet = _ground(rng, size)
    for _ in range(int(rng.integers(4))):
        ink = _INKS[int(rng.integers(len(_INKS)))]
        _disc(sheet, rng.uniform((0, 0), size), rng.uniform(5, 10), ink)
    owner = np.full(size, -1)
    for _ in range(4 * count):
        digit = int(rng.integers(10))
        glyph = _glyph(digit, scale)
        top = int(rng.integers(size[0] - len(glyph) + 1))
        left = int(rng.integers(size[1] - glyph.shape[1] + 1))
        box = slice(top, top + len(glyph)), slice(left, left + glyph.shape[1])
        if (owner[box] < 0).all():
            is_white = modality == "video" or rng.random() < 0.5
            owner[box] = digit if is_white else OTHER + digit
            sheet[box][glyph] = 255 if is_white else _any_ink(rng)
    frames = [sheet + rng.normal(0, 6, sheet.shape) for _ in range(2 if modality == "video" else 1)]
    pixels = np.clip(np.stack(frames), 0, 255).astype(np.uint8)
    labels = _token_labels(owner, num_pixels=35 * scale**2)
    return (pixels if modality == "video" else pixels[0]), labels


def _token_labels(owner: np.ndarray, num_pixels: int) -> np.ndarray:
    labels = []
    for rows in np.split(owner, len(owner) // TOKEN_PIXELS):
        for token in np.split(rows, owner.shape[1] // TOKEN_PIXELS, axis=1):
            counts = np.bincount(token.ravel() + 1, minlength=NOTHING + 1)[1:] / num_pixels
            digit = int(counts.argmax())
            label = digit if counts[digit] >= 0.2 else UNSURE
            labels.append(NOTHING if counts[digit] == 0 else label)
    return np.array(labels)
