"""Peak memory of a long file against a short one: is memory flat in the length of the media?

    python benchmarks/long_media.py               # 10 min video, 1 h recording, each against 1 min
    python benchmarks/long_media.py --model DIR   # another checkpoint than the embedded one

Makes moving shapes (320 x 240, 10 frames a second, H.264) and a changing tone (16 kHz WAV) in a
temporary folder, asks one question about each file in a process of its own, and prints one JSON
line: for each kind the peak resident memory of the short and of the long run in MiB, their ratio
and the seconds. A ratio near 1 means that the length of the file costs no memory; what grows are
the prompt's tokens, which the line counts too.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile

FPS = 10
HEIGHT, WIDTH = 240, 320  # pixels
SAMPLE_RATE = 16_000  # Hz
MINUTE_S = 60

LENGTHS_S = {"video": (MINUTE_S, 10 * MINUTE_S), "audio": (MINUTE_S, 60 * MINUTE_S)}
QUESTIONS = {"video": "In which direction does the shape move?", "audio": "Which word do you hear?"}


def write_video(path: Path, duration_s: int) -> None:
    """Encode a square on a slow round trip, one frame in memory at a time."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(duration_s * FPS):
            angle = 2 * np.pi * index / (20 * FPS)  # a round in 20 s
            left = int((WIDTH - 60) * (0.5 + 0.5 * np.cos(angle)))
            top = int((HEIGHT - 60) * (0.5 + 0.5 * np.sin(angle)))
            pixels = np.full((HEIGHT, WIDTH, 3), 225, dtype=np.uint8)
            pixels[top : top + 60, left : left + 60] = (215, 35, 35)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def write_audio(path: Path, duration_s: int) -> None:
    """Write a tone that changes its pitch every second, one second in memory at a time."""
    times = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, channels=1, subtype="PCM_16") as file:
        for second in range(duration_s):
            pitch_hz = 200 + 50 * (second % 12)
            file.write((0.3 * np.sin(2 * np.pi * pitch_hz * times)).astype(np.float32))


def ask(kind: str, path: Path, model: str | None) -> dict[str, Any]:
    """Ask in this process; return its peak memory, its time and what was asked for."""
    import omni  # here, so that the parent that writes the files stays small

    assistant = omni.load(model)
    start = time.perf_counter()
    reply = assistant.ask(QUESTIONS[kind], path, max_new_tokens=8)
    # Kilobytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20,
        "seconds": time.perf_counter() - start,
        "prompt_tokens": reply.ledger.prompt_tokens,
    }


def measure(kind: str, path: Path, model: str | None) -> dict[str, Any]:
    """Run `ask` in a child process, so that its peak memory is its own."""
    command = [sys.executable, __file__, "--child", kind, str(path)]
    command += [] if model is None else ["--model", model]
    child = subprocess.run(command, capture_output=True, text=True)
    if child.returncode != 0:
        sys.exit(f"Asking about {path.name} failed:\n{child.stderr}")
    return json.loads(child.stdout.splitlines()[-1])


def compare(kind: str, folder: Path, model: str | None) -> dict[str, Any]:
    """Measure a short and a long file of one kind."""
    write, suffix = (write_video, "mp4") if kind == "video" else (write_audio, "wav")
    short_s, long_s = LENGTHS_S[kind]
    runs = {}
    for name, duration_s in (("short", short_s), ("long", long_s)):
        path = folder / f"{name}.{suffix}"
        write(path, duration_s)
        runs[name] = {"duration_s": duration_s, **measure(kind, path, model)}
        path.unlink()
    return {"ratio": runs["long"]["peak_mib"] / runs["short"]["peak_mib"], **runs}


def rounded(value: Any) -> Any:
    """The same structure with floats cut to three digits after the point."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def main() -> None:
    """Measure every kind and print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="checkpoint directory or hub id (default: embedded)")
    parser.add_argument("--child", nargs=2, metavar=("KIND", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        kind, file = options.child
        print(json.dumps(ask(kind, Path(file), options.model)))
        return
    with tempfile.TemporaryDirectory() as folder:
        result = {kind: compare(kind, Path(folder), options.model) for kind in LENGTHS_S}
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    print(json.dumps({"benchmark": "long_media", **rounded(result), "machine": machine}))


if __name__ == "__main__":
    main()
