"""In front of gradio: what a page may load, and no web address among the files of a request.

Gradio fetches a file that a request names by its web address, unless that is private. Here files
are uploaded.
"""

import json
from collections.abc import Iterator
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 32 * 2**20  # bytes of a request that is no upload; a chat sends kilobytes
UPLOADS = ("/upload", "/upload_progress")
# Gradio writes scripts and styles into its page; all else comes from this server alone, so that
# an answer cannot make the browser fetch a picture from elsewhere.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)


class Guard:
    """ASGI middleware: refuses addresses in requests, adds headers to responses.

    Args:
        app: What is guarded.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] == "POST" and not scope["path"].endswith(UPLOADS):
            body = await _read(receive)
            refusal = _refuse(body)
            if refusal is not None:
                await JSONResponse({"detail": refusal}, status_code=400)(scope, receive, send)
                return
            receive = _again(body or b"", receive)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["content-security-policy"] = POLICY
                headers["x-content-type-options"] = "nosniff"
                headers["referrer-policy"] = "no-referrer"
            await send(message)

        await self.app(scope, receive, send_guarded)


async def _read(receive: Receive) -> bytes | None:
    """The whole body; None if it is too large."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            return None
        if not message.get("more_body", False):
            return body


def _again(body: bytes, receive: Receive) -> Receive:
    """The body that was read, as the first message; then what else comes, a disconnection."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


def _refuse(body: bytes | None) -> str | None:
    """Why a request is not passed on; None if it may be."""
    if body is None:
        return f"The request is larger than {MAX_BODY:,} bytes. Upload files instead."
    try:
        content = json.loads(body)
    except ValueError:  # no JSON has no files
        return None
    for address in _addresses(content):
        return (
            f"{address[:80]}: this demo does not fetch web addresses given as files. Download the "
            "file and upload it."
        )
    return None


def _addresses(content: Any) -> Iterator[str]:
    """Paths of files that are web addresses, at any depth."""
    if isinstance(content, dict):
        path = content.get("path")
        if isinstance(path, str) and path.strip().lower().startswith(("http:", "https:", "//")):
            yield path
        for value in content.values():
            yield from _addresses(value)
    elif isinstance(content, list):
        for value in content:
            yield from _addresses(value)
