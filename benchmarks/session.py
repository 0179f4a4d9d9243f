"""What a second question about a long video costs, as a share of the first.

    python benchmarks/session.py                      # 5 minutes of video, the embedded model
    python benchmarks/session.py --minutes 20 --model DIR --reduce "evs(0.7)"

Makes a moving shape (160 x 120, 10 frames a second, H.264) in a temporary folder and asks two
questions of one answer length: each as a request of its own, and both in a session that has opened
the video. Prints one JSON line. `share` is the second question of the session over everything
before it: opening the video and the first question; `share_of_a_request` is that question over the
same as a request of its own. `limit` is what the decoder's work alone would allow: FLOPs of reading
the question over those of reading the video, towers included. Answers are stated with their
equality.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

import omni

FPS = 10
HEIGHT, WIDTH = 120, 160  # pixels
SIDE = 30  # pixels of the square
QUESTIONS = ("In which direction does the shape move?", "Which colour does the shape have?")


def write_video(path: Path, duration_s: float) -> None:
    """Encode a square on a slow round trip, one frame in memory at a time."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(round(duration_s * FPS)):
            angle = 2 * np.pi * index / (20 * FPS)  # a round in 20 s
            left = int((WIDTH - SIDE) * (0.5 + 0.5 * np.cos(angle)))
            top = int((HEIGHT - SIDE) * (0.5 + 0.5 * np.sin(angle)))
            pixels = np.full((HEIGHT, WIDTH, 3), 225, dtype=np.uint8)
            pixels[top : top + SIDE, left : left + SIDE] = (215, 35, 35)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and its seconds."""
    start = time.perf_counter()
    return run(), time.perf_counter() - start


def main() -> None:
    """Measure and print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="checkpoint directory or hub id (default: embedded)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--fps", type=float, default=1.0, help="sampled frames a second")
    parser.add_argument("--reduce", default="identity", help="reduction of the video")
    options = parser.parse_args()
    assistant = omni.load(options.model, device=options.device)
    how: dict[str, Any] = {
        "fps": options.fps,
        "num_frames": round(options.minutes * 60 * options.fps),
        "reduction": {"video": options.reduce},
        "max_new_tokens": 8,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        write_video(path, 1)
        assistant.ask(QUESTIONS[0], path, **how)  # whatever is done only once in a process
        write_video(path, options.minutes * 60)
        session, open_s = timed(lambda: assistant.open(path, **how))
        asked = [timed(lambda q=q: session.ask(q)) for q in QUESTIONS]
        fresh, fresh_s = timed(lambda: assistant.ask(QUESTIONS[1], path, **how))
    first_s, second_s = open_s + asked[0][1], asked[1][1]
    second, opened = asked[1][0].ledger, session.ledger
    result = {
        "share": round(second_s / first_s, 4),
        "share_of_a_request": round(second_s / fresh_s, 4),
        "limit": round(second.prefill_flops / (opened.prefill_flops + opened.tower_flops), 6),
        "same_answer": asked[1][0].text == fresh.text,
        "open_s": round(open_s, 3),
        "first_question_s": round(asked[0][1], 3),
        "second_question_s": round(second_s, 3),
        "fresh_request_s": round(fresh_s, 3),
        "video_s": options.minutes * 60,
        "frames": opened.media[0].stages[0].count,
        "reused_tokens": second.reused_tokens,
        "new_tokens": second.prompt_tokens - second.reused_tokens,
        "answer_tokens": second.answer_tokens,
        "model": assistant.name,
        "device": options.device,
    }
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps({"benchmark": "session", **result, "machine": machine}))


if __name__ == "__main__":
    main()
