"""Turn data of other layouts into conversations for the recipes.

    python -m finetune.recipes.prepare receipts ../shared/data/sroie data/receipts
    python -m finetune.recipes.prepare words ../shared/data/speech_commands data/words
    python -m finetune.recipes.prepare clips - data/clips

Each writes `train.jsonl` and `test.jsonl`, split by what must not repeat (shop, speaker, seed), and
the media that they name.
"""

import argparse
import json
import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from finetune.recipes.data_rows import Row, conversation, read_manifest
from finetune.recipes.receipts import receipts
from finetune.tiny.drawing import COLOURS, DIRECTIONS, draw_frame, random_motion
from finetune.tiny.subjects import encode_clip
from omni.errors import RequestError

TEST_SHARE = 0.15
NUM_CLIPS = {"train": 400, "test": 100}
CLIP_FPS = 4


def is_test(name: str) -> bool:
    """Whether a speaker is held out; the same in every run."""
    return zlib.crc32(name.encode()) % 1000 < 1000 * TEST_SHARE


def words(source: Path, out: Path) -> Iterator[tuple[bool, Row]]:
    """The word of a recording, split by speaker.

    Args:
        source: Folder of Speech Commands with `manifest.jsonl`.
        out: Media stay where they are and are named from here.
    """
    for row in read_manifest(source):
        if row["label"].startswith("_"):
            continue
        path = os.path.relpath(source / row["file"], out)
        yield is_test(row["speaker"]), conversation("Which word?", row["label"], audios=[path])


def clips(_: Path, out: Path) -> Iterator[tuple[bool, Row]]:
    """What moves in a drawn clip, and where to.

    Args:
        out: Gets the clips.
    """
    (out / "clips").mkdir(parents=True, exist_ok=True)
    for part, count in NUM_CLIPS.items():
        rng = np.random.default_rng([len(part), 7])
        for number in range(count):
            side = 2 * int(rng.integers(32, 81))  # encoders want even sizes
            motion = random_motion(rng, (side, side))
            frames = [draw_frame(rng, motion, i) for i in range(motion.num_frames)]
            name = f"clips/{part}-{number}.mp4"
            (out / name).write_bytes(encode_clip(frames, CLIP_FPS))
            assert motion.colour in COLOURS
            assert motion.direction in DIRECTIONS
            answer = f"a {motion.colour} {motion.shape}, {motion.direction}"
            yield part == "test", conversation("What moves where?", answer, videos=[name])


SOURCES = {"receipts": receipts, "words": words, "clips": clips}


def prepare(kind: str, source: Path, out: Path) -> dict[str, int]:
    """Write a data set.

    Args:
        kind: A name of `SOURCES`.
        source: Where the data are; not read by ``clips``.
        out: Folder for `train.jsonl` and `test.jsonl`.

    Returns:
        Rows of each file.
    """
    if kind not in SOURCES:
        raise RequestError(f"Found kind {kind!r}; expected one of {', '.join(SOURCES)}.")
    out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[str]] = {"train": [], "test": []}
    for held_out, row in SOURCES[kind](source, out):
        rows["test" if held_out else "train"].append(json.dumps(row))
    for part, lines in rows.items():
        (out / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    return {part: len(lines) for part, lines in rows.items()}


def main() -> None:
    """Read the command line and prepare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=sorted(SOURCES))
    parser.add_argument("source", type=Path, help="folder of the data; - where none is read")
    parser.add_argument("out", type=Path, help="folder for train.jsonl and test.jsonl")
    arguments = parser.parse_args()
    counts = prepare(arguments.kind, arguments.source, arguments.out)
    sys.stdout.write(json.dumps(counts) + "\n")


if __name__ == "__main__":
    main()
