"""How much sooner is a follow-up question answered in the demo than the first?

    python benchmarks/demo_follow_up.py --seconds 30

Starts `omni demo`, asks about a video through `gradio_client`, and asks again. Prints a JSON line:
medians of the seconds that a client waits, upload included, and their ratio.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
from gradio_client import Client, handle_file

ROOT = Path(__file__).parents[1]
FPS = 8
QUESTIONS = ("In which direction does the shape move?", "Which colour is the shape?")


def write_video(path: Path, seconds: int) -> None:
    """A red square that moves to the right, again and again."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width = stream.height = 64
        for index in range(seconds * FPS):
            pixels = np.full((64, 64, 3), 225, dtype=np.uint8)
            left = index * 3 % 48
            pixels[24:40, left : left + 16] = (215, 35, 35)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=30, help="of the video")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    video = folder / "video.mp4"
    write_video(video, arguments.seconds)
    server = subprocess.Popen(
        [sys.executable, "-m", "demo", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert server.stdout is not None
    url = server.stdout.readline().split("The demo is at ")[1].split()[0]
    waited: tuple[list[float], list[float]] = ([], [])
    for _ in range(arguments.repeats):
        client = Client(url, verbose=False)
        for times, question, files in zip(waited, QUESTIONS, ([video], []), strict=True):
            begin = time.perf_counter()
            message = {"text": question, "files": [handle_file(str(file)) for file in files]}
            _, details = client.predict(message, api_name="/ask")
            times.append(time.perf_counter() - begin)
            assert details["reused"] is (not files)
        client.close()
    server.terminate()
    first, follow_up = map(statistics.median, waited)
    result = {
        "first_s": round(first, 3),
        "follow_up_s": round(follow_up, 3),
        "ratio": round(follow_up / first, 3),
        "video_s": arguments.seconds,
        "prompt_tokens": details["ledger"]["prompt_tokens"],
        "repeats": arguments.repeats,
        "load_average": os.getloadavg()[0],
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
