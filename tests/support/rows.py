"""Rows of training data and the media that they name, made on the spot."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

from tests.support import tiny_omni
from tests.support.media import moving_square, sine, write_pdf, write_video, write_wav


def write_media(folder: Path) -> Path:
    """Two pictures, a video with sound, a recording and a document of two pages."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(("a.png", "b.png")):
        PILImage.fromarray(tiny_omni.picture(32, 40, seed=number)).save(folder / name)
    write_video(folder / "v.mp4", moving_square(16), 8, audio=sine(2.0))
    write_wav(folder / "s.wav", sine(0.8))
    write_pdf(folder / "d.pdf", [["one"], ["two"]])
    return folder


def write_jsonl(path: Path, rows: Iterable[object]) -> Path:
    """One row a line; a string is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_shard(path: Path, files: Mapping[str, bytes | Path | dict[str, Any]]) -> Path:
    """An uncompressed tar file; an object becomes JSON."""
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            if isinstance(content, dict):
                content = json.dumps(content).encode()
            data = content if isinstance(content, bytes) else content.read_bytes()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def turns(question: str = "What?", answer: str = "This.") -> list[dict[str, Any]]:
    """One question and its answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
