"""The chat in a real browser, on the real server and the embedded checkpoint."""

import time
from pathlib import Path

import pytest

from tests.demo.conftest import MEDIA, Visit

ASKED = {
    "digit.png": ("Which digit is written here?", "Three"),
    "clip.mp4": ("In which direction does the shape move?", "Right"),
    "recording.wav": ("Which word do you hear?", "Seven"),
    "ticket.pdf": ("What is printed here?", "TOTAL"),
}
TALK = "Tell me something."  # the answer is the longest that the model knows
# Notes how the answer grows; with `stop`, presses the button at its first words.
WATCH = """
stop => {
  window.lengths = [];
  window.watcher = new MutationObserver(() => {
    const bots = document.querySelectorAll('#chat [data-testid=bot]');
    const length = bots.length ? bots[bots.length - 1].innerText.trim().length : 0;
    if (length === window.lengths.at(-1)) return;
    window.lengths.push(length);
    const button = document.querySelector('#chat-message .stop-button');
    if (stop && length && button) button.click();
  });
  window.watcher.observe(document.querySelector('#chat'),
                         {subtree: true, childList: true, characterData: true});
}
"""


def ask(visit: Visit, question: str, *files: Path) -> str:
    """Ask, and wait for the answer."""
    before = len(visit.answers())
    visit.attach(*files)
    visit.say(question)
    visit.page.wait_for_function(
        "n => document.querySelectorAll('#chat [data-testid=bot]').length > n", arg=before
    )
    visit.page.locator("#chat-message [data-testid=submit-button]").wait_for()
    return visit.answers()[-1]


def start_anew(visit: Visit) -> None:
    """Begin a new conversation."""
    visit.page.locator("#chat-new").click()
    visit.page.wait_for_function("!document.querySelector('#chat [data-testid=bot]')")


def test_image_clip_recording_and_pdf_are_answered_and_the_evidence_is_shown(visit):
    window = visit()
    for file, (question, answer) in ASKED.items():
        start_anew(window)
        assert answer in ask(window, question, MEDIA / file), file
        window.page.locator("#chat-evidence .shown", has_text=file).first.wait_for()
        assert window.page.locator("#chat-evidence .state").count()
    assert window.errors == []


def test_a_follow_up_question_encodes_nothing_again(visit, screenshot):
    window = visit()
    ask(window, "In which direction does the shape move?", MEDIA / "clip.mp4")
    ledger = window.page.locator("#chat-evidence .ledger")
    ledger.get_by_text("decode").first.wait_for()
    assert ledger.get_by_text("of them read before").count() == 0
    assert "Red" in ask(window, "Which colour is the shape?")
    ledger.get_by_text("of them read before").wait_for()
    screenshot(window.page, "chat")


def test_an_answer_is_seen_growing_and_can_be_stopped(visit):
    window = visit()
    page = window.page
    page.evaluate(WATCH, False)
    whole = ask(window, TALK)
    lengths = page.evaluate("window.watcher.disconnect(), window.lengths")
    growing = [length for length in lengths if length]
    assert growing == sorted(growing)
    assert len(growing) > 2
    assert growing[0] < len(whole)

    start_anew(window)
    page.evaluate(WATCH, True)
    ask(window, TALK)
    page.wait_for_timeout(500)  # what was said before the server knew is still shown
    begun = window.answers()[-1]
    assert len(begun) < len(whole)
    assert whole.startswith(begun)
    page.wait_for_timeout(1000)
    assert window.answers()[-1] == begun
    page.evaluate("window.watcher.disconnect()")
    assert ask(window, TALK)  # the conversation goes on
    start_anew(window)
    assert "Three" in ask(window, ASKED["digit.png"][0], MEDIA / "digit.png")


def test_a_bad_file_is_a_message_and_the_chat_goes_on(visit, tmp_path):
    bad = tmp_path / "broken.pdf"
    bad.write_bytes(b"%PDF-1.4 and then nothing of the kind")
    window = visit()
    answer = ask(window, "What is printed here?", bad)
    assert "Not answered" in answer
    assert "broken.pdf" in answer
    assert "Three" in ask(window, ASKED["digit.png"][0], MEDIA / "digit.png")


def test_two_people_never_see_each_others_files_or_answers(visit, server):
    first, second = visit(), visit()
    first.attach(MEDIA / "digit.png")
    second.attach(MEDIA / "recording.wav")
    first.say(ASKED["digit.png"][0])
    second.say(ASKED["recording.wav"][0])
    for window in (first, second):
        window.page.locator("#chat-evidence .shown").wait_for()
    seen = [
        "".join(window.page.locator(part).inner_html() for part in ("#chat", "#chat-evidence"))
        for window in (first, second)
    ]
    assert "digit.png" in seen[0]
    assert "recording.wav" in seen[1]
    assert "recording.wav" not in seen[0]
    assert "digit.png" not in seen[1]
    assert "Three" in first.answers()[-1]
    assert "Seven" in second.answers()[-1]
    # What one asks next has nothing of the other's conversation.
    before = len(second.answers())
    ask(first, "Which word do you hear?", MEDIA / "recording.wav")
    assert len(second.answers()) == before


@pytest.mark.slow
def test_files_are_gone_when_their_tab_is_closed(browser, server, tmp_path):
    private = tmp_path / "only-mine.png"
    private.write_bytes((MEDIA / "digit.png").read_bytes() + b"\0")
    context = browser.new_context()
    window = Visit(context.new_page(), server.url)
    ask(window, ASKED["digit.png"][0], private)
    assert [path for path in server.uploads() if path.name == private.name]
    context.close()
    for _ in range(600):
        if not [path for path in server.uploads() if path.name == private.name]:
            return
        time.sleep(0.1)
    raise AssertionError("The upload is still there")
