"""Many people use the web demo at once: errors, answers, and the server's memory.

    python benchmarks/demo_users.py --users 20 --seconds 120

Starts `omni demo` on this machine. Each user is a client of their own, with files of their own in
turn, who asks, waits for the answer and asks again until time is up, then leaves. Prints one JSON
line. The server's memory (RSS, MB) is read at the start, after one user has asked about each file
once and left (libraries keep buffers from the first use on), at its highest, and when the last user
of each of two rounds has left: what grows from the first use to there, and from round to round,
would be a leak.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
from gradio_client import Client, handle_file

ROOT = Path(__file__).parents[1]
MEDIA = ROOT / "examples" / "media"
FILES = ("digit.png", "clip.mp4", "recording.wav", "ticket.pdf")
LEAVING_S = 40.0  # a client that left is noticed at its next heartbeat, which is every 15 s
PATIENCE_S = 120.0  # a busy machine is slow; that is measured, and is no error
QUESTIONS = {
    "digit.png": ("Which digit is written here?", "Three"),
    "clip.mp4": ("In which direction does the shape move?", "Right"),
    "recording.wav": ("Which word do you hear?", "Seven"),
    "ticket.pdf": ("What is printed here?", "TOTAL"),
}


class Round:
    """Users who ask until time is up.

    Args:
        url: Of the server.
        seconds: How long.
    """

    def __init__(self, url: str, seconds: float) -> None:
        self.url = url
        self.seconds = seconds
        self.lock = threading.Lock()
        self.waits: list[float] = []
        self.errors: Counter[str] = Counter()
        self.wrong = 0

    def run(self, users: int) -> None:
        """Let them all begin; return when the last has left."""
        threads = [threading.Thread(target=self.user, args=(n,)) for n in range(users)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def visit(self, files: list[str]) -> None:
        """One user who asks about each file once and leaves."""
        client = Client(self.url, verbose=False, httpx_kwargs={"timeout": PATIENCE_S})
        for file in files:
            self.ask(client, file)
        client.close()

    def user(self, number: int) -> None:
        """Ask about one file after another."""
        client = None
        try:
            client = Client(self.url, verbose=False, httpx_kwargs={"timeout": PATIENCE_S})
            end = time.monotonic() + self.seconds
            turn = number
            while time.monotonic() < end:
                self.ask(client, FILES[turn % len(FILES)])
                turn += 1
        except Exception as error:
            with self.lock:
                self.errors[f"{type(error).__name__}: {error}"[:120]] += 1
        finally:
            if client is not None:
                client.close()

    def ask(self, client: Client, file: str) -> None:
        """One question in a conversation of its own."""
        question, expected = QUESTIONS[file]
        start = time.monotonic()
        client.predict(api_name="/new_conversation")
        message: dict[str, Any] = {"text": question, "files": [handle_file(MEDIA / file)]}
        answer, _ = client.predict(message=message, api_name="/ask")
        with self.lock:
            self.waits.append(time.monotonic() - start)
            self.wrong += expected not in answer


def measure(users: int, seconds: float) -> dict[str, Any]:
    """Two rounds of users on a fresh server."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "demo", "--port", "0"],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": folder},
        )
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split("The demo is at ")[1].split()[0]
            return observe(psutil.Process(process.pid), url, Path(folder), users, seconds)
        finally:
            process.terminate()
            process.wait()


def observe(
    server: psutil.Process, url: str, folder: Path, users: int, seconds: float
) -> dict[str, Any]:
    """Memory before, during and after each round, and what the users got."""
    memory = [server.memory_info().rss]
    highest = memory[0]
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.5):
            highest = max(highest, server.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    first = Round(url, 0.0)
    first.visit([*FILES])
    time.sleep(LEAVING_S)
    memory.append(server.memory_info().rss)
    rounds = [first]
    for _ in range(2):
        rounds.append(Round(url, seconds))
        rounds[-1].run(users)
        time.sleep(LEAVING_S)
        memory.append(server.memory_info().rss)
    done.set()
    watcher.join()
    waits = sorted(wait for each in rounds[1:] for wait in each.waits)
    errors = sum((each.errors for each in rounds), Counter[str]())
    return {
        "benchmark": "demo_users",
        "users": users,
        "seconds": seconds,
        "answers": [len(each.waits) for each in rounds[1:]],
        "errors": sum(errors.values()),
        "error_messages": dict(errors),
        "answers_of_another_file": sum(each.wrong for each in rounds),
        "wait_s": {
            "median": round(waits[len(waits) // 2], 2) if waits else None,
            "longest": round(waits[-1], 2) if waits else None,
        },
        "rss_mb": {
            "at_start": round(memory[0] / 1e6),
            "after_first_use": round(memory[1] / 1e6),
            "highest": round(highest / 1e6),
            "after_round_1": round(memory[2] / 1e6),
            "after_round_2": round(memory[3] / 1e6),
        },
        "uploads_left": sum(path.is_file() for path in folder.glob("omni-demo-*/**/*")),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=120.0)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.users, arguments.seconds)))


if __name__ == "__main__":
    main()
