"""No web address reaches gradio as a file, at whatever depth a request hides it."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from demo.guard import MAX_BODY, Guard

addresses = st.sampled_from(
    ["http://example.org/a.png", "HTTPS://example.org", " http://10.0.0.1/", "//example.org/a"]
)
harmless = st.sampled_from(["/uploads/a.png", "", "see http://example.org", None, 3])


def around(value: Any) -> st.SearchStrategy:
    return st.recursive(
        st.just(value),
        lambda inner: (
            st.builds(lambda x: ["text", x], inner)
            | st.builds(lambda x: {"data": x, "n": 1}, inner)
        ),
        max_leaves=3,
    )


def post(body: bytes, path: str = "/gradio_api/queue/join") -> tuple[int, bytes, bytes | None]:
    """Status, body of the response, and what the app behind the guard was sent."""
    got: list[bytes] = []
    sent: list[Any] = []

    async def app(scope, receive, send) -> None:
        got.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    halves = [body[: len(body) // 2], body[len(body) // 2 :]]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": halves.pop(0), "more_body": bool(halves)}

    async def send(message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": []}
    with ThreadPoolExecutor(1) as pool:  # this thread may have a loop: the browser's
        pool.submit(asyncio.run, Guard(app)(scope, receive, send)).result()
    return sent[0]["status"], sent[1]["body"], got[0] if got else None


@given(addresses.flatmap(lambda address: around({"path": address, "url": None})))
def test_addresses_are_refused(content) -> None:
    status, body, got = post(json.dumps(content).encode())
    assert (status, got) == (400, None)
    assert b"does not fetch web addresses" in body


@given(harmless.flatmap(lambda path: around({"path": path, "url": "http://127.0.0.1/file=a"})))
def test_everything_else_arrives_as_it_was_sent(content) -> None:
    body = json.dumps(content).encode()
    assert post(body) == (200, b"ok", body)


def test_what_is_no_json_arrives_too_unless_it_is_too_large() -> None:
    assert post(b"\xff\x00 no json") == (200, b"ok", b"\xff\x00 no json")
    status, body, got = post(b"0" * (MAX_BODY + 1))
    assert (status, got) == (400, None)
    assert b"Upload files instead" in body
