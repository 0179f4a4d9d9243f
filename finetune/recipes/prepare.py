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
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune.recipes.text_rows import cut_text_rows
from finetune.tiny.drawing import COLOURS, DIRECTIONS, draw_frame, random_motion
from finetune.tiny.subjects import encode_clip
from finetune.tiny.receipts import Crop, is_held_out, text_between
from omni.errors import RequestError

TEST_SHARE = 0.15
# Company and address stand in the top third of a receipt (99 % of SROIE's). Some words of it at a
# time are a picture: a whole page would be shrunk beyond reading by a small tower.
TOP_SHARE = 0.36
CUTS = 4  # of a receipt for training, each a little different
LEAST_CHAIN = 5  # letters of a name that tell a chain
NUM_CLIPS = {"train": 400, "test": 100}
CLIP_FPS = 4

Row = dict[str, Any]


def is_test(name: str) -> bool:
    """Whether a speaker is held out; the same in every run."""
    return zlib.crc32(name.encode()) % 1000 < 1000 * TEST_SHARE


def conversation(question: str, answer: str, **media: list[str]) -> Row:
    """One question about media, and its answer; media are named relative to the data file."""
    tags = "".join("<image>" for _ in media.get("images", ()))
    tags += "".join("<audio>" for _ in media.get("audios", ()))
    tags += "".join("<video>" for _ in media.get("videos", ()))
    return {
        "messages": [
            {"role": "user", "content": f"{tags}{question}"},
            {"role": "assistant", "content": answer},
        ],
        **media,
    }


def receipts(source: Path, out: Path) -> Iterator[tuple[bool, Row]]:
    """Company and address of scanned receipts as a JSON object, split by shop.

    Shops that are held out have not been seen in the training of `omni-tiny` either; receipts of
    their chain or address are used on neither side. The question comes with the top of the receipt:
    its rows of print, in pictures of some words each. For training it is asked several times, with
    other margins, and each row is asked about alone too, what is written in it.

    Args:
        source: Folder with SROIE's `manifest.jsonl` and images.
        out: Gets the rows.
    """
    (out / "rows").mkdir(parents=True, exist_ok=True)
    question = "Which company is it, and what is its address? Answer in JSON."
    rows = [r for r in _manifest(source) if r["key"].get("company") and r["key"].get("address")]
    test_keys = [row["key"] for row in rows if is_held_out(row["key"]["company"])]
    rng = np.random.default_rng(0)
    for row in rows:
        key = row["key"]
        held_out = is_held_out(key["company"])
        if not held_out and any(are_related(key, other) for other in test_keys):
            continue
        with Image.open(source / row["file"]) as scan:
            page = np.asarray(scan.convert("L"))
        lines = [Crop(page, tuple(line["box"]), line["text"]) for line in row["lines"]]
        page = page[: round(TOP_SHARE * len(page))]
        answer = json.dumps({"company": key["company"], "address": key["address"]})
        for cut in range(1 if held_out else CUTS):
            names = []
            for number, found in enumerate(cut_text_rows(page, rng if cut else None)):
                pieces = []
                for place, image in enumerate(found.pieces):
                    pieces.append(f"rows/{row['id']}-{cut}-{number}-{place}.png")
                    image.save(out / pieces[-1])
                names += pieces
                text = text_between(lines, found.top, found.bottom)
                if text and not held_out and not cut:
                    yield False, conversation("What is written here?", text, images=pieces)
            yield held_out, conversation(question, answer, images=names)


def are_related(one: Row, other: Row) -> bool:
    """Whether two receipts are of one chain, or of one address.

    Names are compared without what tells branches apart (brackets, legal form, punctuation), and
    one may go on where the other ends.
    """
    names = sorted((_chain_of(one["company"]), _chain_of(other["company"])), key=len)
    is_chain = len(names[0]) >= LEAST_CHAIN and names[1].startswith(names[0])
    return is_chain or _plain(one["address"]) == _plain(other["address"])


def _chain_of(company: str) -> str:
    name = re.sub(r"\(.*?\)|\bS/B\b", "", company.upper())
    return _plain(re.sub(r"\b(SDN|BHD|PLT|CO|ENTERPRISE)\b", "", name))


def _plain(text: str) -> str:
    return re.sub(r"[^A-Z0-9]", "", text.upper())


def words(source: Path, out: Path) -> Iterator[tuple[bool, Row]]:
    """The word of a recording, split by speaker.

    Args:
        source: Folder of Speech Commands with `manifest.jsonl`.
        out: Media stay where they are and are named from here.
    """
    for row in _manifest(source):
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


def _manifest(source: Path) -> list[Row]:
    path = source / "manifest.jsonl"
    if not path.is_file():
        raise RequestError(f"{path}: no such file; expected the folder of the data, with it.")
    return [json.loads(line) for line in path.read_text().splitlines()]


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
