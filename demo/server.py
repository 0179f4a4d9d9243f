"""Serving the demo: who may connect, what may be uploaded, what may be read.

1. Uploads go to a folder of this server alone, which is removed when it ends; neither the web
   server nor the media gateway reads any other file for visitors.
2. Web addresses are refused before gradio, which would fetch them, sees them.
3. One request runs at a time; others wait in a queue, which says how many are before them.
"""

import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.middleware import Middleware

from demo.guard import Guard
from demo.models import Models
from omni.budget import parse_bytes
from omni.errors import RequestError
from omni.media import MediaLimits

USER = "omni"  # gradio's login form asks for a name beside the password
MAX_QUEUE = 64  # requests that may wait; the next is told that the queue is full
CACHE_SECONDS = 24 * 3600  # uploads of visitors who never asked about them are removed after this
MAX_SECONDS = 3600.0  # of one video or recording
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How the demo is served.

    Attributes:
        host: Address to listen on.
        port: Port; 0 takes a free one.
        model: Checkpoint that answers; None is the embedded one.
        adapter: Adapter for it.
        folders: Folders of further checkpoints and adapters.
        device: Where models run.
        password: What visitors must know; None lets everyone in.
        allow_network: Whether visitors may name hub ids as models.
        max_upload: Largest file, in bytes or as ``"200MB"``.
        open_browser: Whether to open the page.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    model: str | None = None
    adapter: str | None = None
    folders: tuple[Path, ...] = ()
    device: str | None = None
    password: str | None = None
    allow_network: bool = False
    max_upload: int | str = "200MB"
    open_browser: bool = False

    @property
    def limits(self) -> MediaLimits:
        """What the media gateway accepts of visitors."""
        return MediaLimits(
            max_bytes=parse_bytes(self.max_upload), max_seconds=MAX_SECONDS, max_pages=200
        )


def serve(settings: ServerSettings) -> None:
    """Serve the demo until the program is interrupted.

    Raises:
        OmniError: The model cannot be loaded, or the port is taken.
    """
    # Ended by a service manager, uploads go as with Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with running(settings) as (app, url):
        print(f"The demo is at {url} (Ctrl-C ends it)", flush=True)  # noqa: T201
        if settings.host not in LOOPBACK and settings.password is None:
            print(  # noqa: T201
                f"Everyone who reaches {settings.host} can use it; --password restricts that.",
                file=sys.stderr,
            )
        app.block_thread()


@contextmanager
def running(settings: ServerSettings) -> Iterator[tuple[Any, str]]:
    """A server in the background, which ends with the block.

    Yields:
        Gradio's blocks, and the address of the page.
    """
    port = settings.port or _free_port(settings.host)
    _check_port(settings.host, port)
    folder = Path(tempfile.mkdtemp(prefix="omni-demo-"))
    # Gradio has no other setting for its uploads, and asks for its version when it is imported.
    environment = {
        "GRADIO_TEMP_DIR": str(folder),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_ANALYTICS_MAX_EVENTS": "100",  # that it remembers; by itself 10,000
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        from demo.app import HEAD, build_app
        from demo.housekeeping import MOST_SESSIONS
        from demo.look import CSS, theme
        from demo.visitors import Visitors

        models = Models(
            settings.model,
            settings.adapter,
            folders=settings.folders,
            allow_network=settings.allow_network,
            device=settings.device,
            limits=settings.limits,
            allowed_roots=[folder],
        )
        models.get()
        app = build_app(models, Visitors(folder), cache_seconds=CACHE_SECONDS)
        app.queue(max_size=MAX_QUEUE, default_concurrency_limit=1)
        app.launch(
            server_name=settings.host,
            server_port=port,
            share=False,
            inbrowser=settings.open_browser,
            auth=None if settings.password is None else (USER, settings.password),
            max_file_size=settings.limits.max_bytes,
            allowed_paths=[],
            theme=theme(),
            css=CSS,
            head=HEAD,
            ssr_mode=False,
            run_history=False,
            footer_links=["api"],
            enable_monitoring=False,
            state_session_capacity=MOST_SESSIONS,
            app_kwargs={"middleware": [Middleware(Guard)]},
            prevent_thread_lock=True,
            quiet=True,
        )
        try:
            yield app, app.local_url
        finally:
            app.close(verbose=False)
            models.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _free_port(host: str) -> int:
    _check_port(host, 0)
    with socket.socket(_family(host)) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _check_port(host: str, port: int) -> None:
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise RequestError(
                f"Port {port} of {host} cannot be used: {error.strerror}. Choose another with "
                "--port (0 is any free one), or another address of this machine with --host."
            ) from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
