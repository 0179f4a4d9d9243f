"""The server as programs see it: `gradio_client` and plain requests, on the embedded checkpoint."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from tests.demo.conftest import MEDIA, ROOT, Server

DIGIT = "Which digit is written here?"


@contextmanager
def visiting(server: Server, **options: Any) -> Iterator[Callable[..., tuple[str, dict[str, Any]]]]:
    """A client of its own, as a function that asks."""
    client = Client(server.url, verbose=False, **options)

    def ask(question: str, *files: Path, **settings: Any) -> tuple[str, dict[str, Any]]:
        message = {"text": question, "files": [handle_file(str(file)) for file in files]}
        return client.predict(message, api_name="/ask", **settings)

    try:
        yield ask
    finally:
        client.close()


def test_a_follow_up_question_reads_nothing_again(server) -> None:
    with visiting(server) as ask:
        answer, details = ask(DIGIT, MEDIA / "digit.png")
        assert (answer, details["reused"]) == ("Three.", False)
        [entry] = details["evidence"]
        assert (entry["name"], entry["state"]) == ("digit.png", "used")
        follow_up, again = ask("Is it a three?")
        assert (follow_up, again["reused"]) == ("Three.", True)
        assert again["ledger"]["reused_tokens"] > entry["tokens"]
        assert again["evidence"] == details["evidence"]


def test_two_visitors_have_a_conversation_each(server) -> None:
    with visiting(server) as first, visiting(server) as second:
        first(DIGIT, MEDIA / "digit.png")
        answer, details = second("Is it a three?")
        assert (details["evidence"], details["ledger"]["media"]) == ([], [])
        assert "Three" not in answer
        assert first("Is it a three?")[1]["reused"]


def test_a_bad_file_is_a_message_and_the_next_question_is_answered(server, tmp_path) -> None:
    bad = tmp_path / "bad.pdf"
    bad.write_bytes(b"%PDF-1.4 and then nothing of the kind")
    with visiting(server) as ask:
        with pytest.raises(AppError, match=r"^bad\.pdf: ") as refused:
            ask("What is printed here?", bad)
        assert str(server.folder) not in str(refused.value)
        assert ask(DIGIT, MEDIA / "digit.png")[0] == "Three."
        with pytest.raises(AppError, match="media marker, '<image>'"):
            ask("What is <image>?")


def test_nothing_is_left_of_a_client_that_has_gone(server, tmp_path) -> None:
    private = tmp_path / "only-mine.png"
    private.write_bytes((MEDIA / "digit.png").read_bytes() + b"\0")

    def is_kept() -> bool:
        return any(path.name == private.name for path in server.uploads())

    with visiting(server) as ask:
        ask(DIGIT, private)
        assert is_kept()
    deadline = time.monotonic() + 60
    while is_kept():
        assert time.monotonic() < deadline, "The upload is still there"
        time.sleep(0.1)


def test_only_uploads_can_be_read(server, tmp_path) -> None:
    secret = server.folder / "secret.txt"  # in the folder for temporary files and the current one
    secret.write_text("secret")
    for path in (secret, ROOT / "README.md", Path("/etc/hostname")):
        response = httpx.get(f"{server.url}gradio_api/file={path}", timeout=60)
        assert response.status_code in (403, 404), path
        # A program may leave out the mark by which gradio knows a file, and its check with it.
        for mark in ({}, {"meta": {"_type": "gradio.FileData"}}):
            started, events = call(
                server, {"text": "What?", "files": [{"path": str(path), **mark}]}
            )
            assert started == 200
            assert "event: error" in events
            assert "event: complete" not in events


def test_web_addresses_are_refused(server) -> None:
    for mark in ({}, {"meta": {"_type": "gradio.FileData"}}):
        file = {"path": "http://192.0.2.1/a.png", **mark}
        started, text = call(server, {"text": "What?", "files": [file]})
        assert started == 400
        assert "does not fetch web addresses" in text


def call(server: Server, message: dict[str, Any]) -> tuple[int, str]:
    """`/ask` by plain requests: the status of starting it, and what it then says."""
    settings = ["", 0, 1, 16, 0, False, 0]
    url = f"{server.url}gradio_api/call/ask"
    started = httpx.post(url, json={"data": [message, *settings]}, timeout=60)
    if started.status_code != 200:
        return started.status_code, started.text
    return 200, httpx.get(f"{url}/{started.json()['event_id']}", timeout=60).text


def test_the_page_may_load_nothing_from_elsewhere(server) -> None:
    page = httpx.get(server.url, timeout=60)
    policy = page.headers["content-security-policy"]
    assert "http" not in policy
    assert policy.startswith("default-src 'self' ")
    assert '"analytics_enabled":false' in page.text.replace(" ", "")


def test_the_endpoints_are_those_of_the_page_in_the_documentation(server) -> None:
    client = Client(server.url, verbose=False)
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    text = (ROOT / "docs" / "demo.md").read_text()
    table = text[text.index("| endpoint |") :].split("\n\n")[0].splitlines()[2:]
    documented = {}
    for row in table:
        names, takes, _ = row.strip("| ").split(" | ")
        documented |= {
            f"/{name}": set(re.findall(r"`(\w+)`", takes))
            for name in re.findall(r"`/(\w+)`", names)
        }
    assert set(documented) == set(endpoints)
    for name, endpoint in endpoints.items():
        parameters = {parameter["parameter_name"] for parameter in endpoint["parameters"]}
        expected = documented[name] - {"text", "files"}
        if name == "/compare":  # the controls of both sides
            both = expected - {"file", "question", "a_dpi", "b_dpi"}
            expected = {"file", "question"} | {f"{side}_{own}" for side in "ab" for own in both}
        assert parameters == expected, name
    client.close()


def test_workspaces_answer_programs_by_the_names_of_their_controls(server) -> None:
    client = Client(server.url, verbose=False)
    pages = handle_file(MEDIA / "pages.pdf")
    asked = {"file": pages, "question": "What is printed here?", "api_name": "/document_ask"}
    answer, shown, ledger = client.predict(**asked)
    assert "read before" not in ledger
    sources = re.findall(
        r"pages.pdf page (\d)</b>[^<]*<span[^>]*>used</span> <span[^>]*>source", shown
    )
    assert {"1", "3"} & set(sources), answer  # page 2 has a drawing only
    answer, shown, ledger = client.predict(**asked | {"question": "What is drawn here?"})
    assert (answer, shown.count("state source")) == ("Blue circle.", 1)
    assert "read before" in ledger  # from what the first question read
    _, shown, _ = client.predict(**asked, find_sources=False)
    assert "state source" not in shown
    _, _, ledger = client.predict(**asked, image_reducer="uniform", image_rate=0.5)
    assert "read before" not in ledger
    assert "uniform(0.5)" in ledger

    words = handle_file(MEDIA / "words.flac")
    panel, rows = client.predict(
        file=words, question="Which word do you hear?", stretch_s=1, api_name="/audio_transcript"
    )
    said = [(row["start_s"], row["end_s"], row["text"]) for row in rows]
    assert said == [(0, 1, "Left."), (1, 2, "Seven."), (2, 3, "Stop."), (3, 4, "Go.")]
    assert panel.count('class="seek"') == len(rows)
    with pytest.raises(AppError, match=r"0\.5 is less than minimum value 1"):
        client.predict(file=words, stretch_s=0.5, api_name="/audio_transcript")
    client.close()


@pytest.mark.slow
def test_a_password_and_a_limit_on_uploads(tmp_path) -> None:
    server = Server(tmp_path, "--password", "open sesame", "--max-upload", "20KB")
    try:
        page = httpx.get(f"{server.url}config", timeout=60)
        assert page.status_code == 401
        with pytest.raises(ValueError, match=r"(?i)credentials|login|401|could not"):
            Client(server.url, verbose=False, auth=("omni", "wrong"))
        with visiting(server, auth=("omni", "open sesame")) as ask:
            assert ask(DIGIT, MEDIA / "digit.png")[0] == "Three."
            large = tmp_path / "large.wav"
            large.write_bytes((MEDIA / "recording.wav").read_bytes())  # 32 kB
            with pytest.raises((httpx.HTTPError, AppError, ValueError)):
                ask("Which word do you hear?", large)
            assert ask("Is it a three?")[0] == "Three."
    finally:
        server.stop()
    assert not list(tmp_path.glob("omni-demo-*"))


@pytest.mark.slow
def test_a_port_that_is_taken_is_one_line(server) -> None:
    port = server.url.rstrip("/").rsplit(":", 1)[1]
    done = subprocess.run(
        [sys.executable, "-m", "demo", "--port", port], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert re.fullmatch(rf"error: Port {port} of 127\.0\.0\.1 cannot be used: .*\n", done.stderr)
