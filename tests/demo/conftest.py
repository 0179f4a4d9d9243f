"""A real server on the embedded checkpoint, and a real Chromium that looks at it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MEDIA = ROOT / "examples" / "media"
IMAGES = ROOT / "docs" / "images"
PATIENCE_MS = 120_000  # how long a busy machine may take for what usually takes a second
NO_BROWSER = (
    "The browser tests of the demo did NOT run: no Chromium was found. On Debian and Ubuntu run\n"
    "    apt-get install --yes chromium\n"
    "or name one: OMNI_TEST_CHROMIUM=/path/to/chromium make test"
)
# No sandbox: tests may run as root. The others keep Chromium from calling its maker.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
]


def chromium() -> str | None:
    """Where the browser is."""
    named = os.environ.get("OMNI_TEST_CHROMIUM")
    return named or shutil.which("chromium") or shutil.which("chromium-browser")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A skip in a line of dots is easily missed; this is not."""
    skipped = terminalreporter.stats.get("skipped", [])
    if any("browser tests of the demo" in str(report.longrepr) for report in skipped):
        terminalreporter.section("BROWSER TESTS SKIPPED", sep="!", red=True, bold=True)
        terminalreporter.write_line(NO_BROWSER)


class Server:
    """`omni demo` in a process of its own.

    Args:
        arguments: Of the command.
        folder: Its working directory.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        environment |= {"TMPDIR": str(folder), "HF_HUB_OFFLINE": "1"}
        environment["OMNI_NATIVE"] = "off"  # else answers are there before they are seen to grow
        self.folder = folder
        self.log = (folder / "server.log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "demo", "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            cwd=folder,
            env=environment,
        )
        line = self.process.stdout.readline()
        if "The demo is at " not in line:
            self.stop()
            raise RuntimeError(f"No server: {line!r}\n{(folder / 'server.log').read_text()}")
        self.url = line.split("The demo is at ")[1].split()[0]

    def uploads(self) -> list[Path]:
        """Files that visitors have here now."""
        return [path for path in self.folder.glob("omni-demo-*/**/*") if path.is_file()]

    def stop(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait(timeout=60)
        self.process.stdout.close()
        self.log.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    path = chromium()
    if path is None:
        pytest.skip(NO_BROWSER)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


class Visit:
    """A browser window of its own on the page, and what the page asked for.

    Args:
        page: Playwright's page.
        url: Of the server.
    """

    def __init__(self, page: Any, url: str) -> None:
        self.page = page
        self.requests: list[str] = []
        self.errors: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(url)
        page.get_by_role("tab", name="Chat").wait_for()

    def open_tab(self, name: str) -> Any:
        """Show a workspace.

        Returns:
            Its panel.
        """
        self.page.get_by_role("tab", name=name, exact=True).click()
        return self.page.get_by_role("tabpanel").filter(visible=True)

    def attach(self, *files: Path) -> None:
        """Add files to the next message of the chat."""
        if files:
            box = self.page.locator("#chat-message")
            box.locator("input[type=file]").set_input_files([str(file) for file in files])
            box.locator("[role=listitem]").nth(len(files) - 1).wait_for()

    def say(self, text: str) -> None:
        """Send a message of the chat."""
        self.page.locator("#chat-message textarea").fill(text)
        self.page.locator("#chat-message [data-testid=submit-button]").click()

    def answers(self) -> list[str]:
        """What the model has said in the chat."""
        return self.page.locator("#chat [data-testid=bot]").all_inner_texts()


@pytest.fixture
def visit(browser, server) -> Iterator[Callable[..., Visit]]:
    """Opens browser windows; each is a person of their own."""
    contexts: list[Any] = []

    def open_window(**options: Any) -> Visit:
        contexts.append(browser.new_context(viewport={"width": 1440, "height": 900}, **options))
        return Visit(contexts[-1].new_page(), server.url)

    yield open_window
    for context in contexts:
        context.close()


@pytest.fixture
def screenshot() -> Callable[[Any, str], None]:
    """Saves the page for the documentation, if OMNI_TEST_SCREENSHOTS is set."""

    def save(page: Any, name: str) -> None:
        if os.environ.get("OMNI_TEST_SCREENSHOTS"):
            IMAGES.mkdir(exist_ok=True)
            page.mouse.move(0, 0)
            page.screenshot(path=IMAGES / f"demo-{name}.png", full_page=True)

    return save
