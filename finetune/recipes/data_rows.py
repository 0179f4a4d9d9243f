"""Rows of a data set as `omni finetune` reads them, and the lists that they are made from."""

import json
from pathlib import Path
from typing import Any

from omni.errors import RequestError

Row = dict[str, Any]


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


def read_manifest(source: Path) -> list[Row]:
    """What `manifest.jsonl` in a folder lists.

    Raises:
        RequestError: There is none.
    """
    path = source / "manifest.jsonl"
    if not path.is_file():
        raise RequestError(f"{path}: no such file; expected the folder of the data, with it.")
    return [json.loads(line) for line in path.read_text().splitlines()]
