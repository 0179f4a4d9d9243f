"""Documents, videos and recordings in their workspaces, in a real browser."""

import re
import time

import numpy as np
import pytest
import soundfile

from tests.demo.conftest import MEDIA, PATIENCE_MS, Visit

ANSWERS = {
    "Document": ("ticket.pdf", "TOTAL 42"),
    "Video": ("clip.mp4", "Right."),
    "Audio": ("recording.wav", "Seven."),
}


def upload(visit: Visit, name: str, file) -> None:
    """Choose a file and wait until the plan counts it."""
    visit.open_tab(name)
    visit.page.locator(f"#{name.lower()}-medium input[type=file]").set_input_files(str(file))


def planned(visit: Visit, prefix: str) -> int:
    """Tokens of the prompt that the plan states."""
    total = visit.page.locator(f"#{prefix}-plan .total b")
    return int(re.sub(r"\D", "", total.inner_text()))


@pytest.mark.parametrize("name", ANSWERS)
def test_an_uploaded_file_is_planned_previewed_and_answered(visit, screenshot, name):
    file, answer = ANSWERS[name]
    prefix = name.lower()
    window = visit()
    upload(window, name, MEDIA / file)
    page = window.page
    page.locator(f"#{prefix}-shown .preview").wait_for()
    tokens = planned(window, prefix)
    page.locator(f"#{prefix}-ask").click()
    page.locator(f"#{prefix}-shown .shown").wait_for()
    assert answer in page.locator(f"#{prefix}-answer textarea").input_value()
    assert f"{tokens} tokens" in page.locator(f"#{prefix}-ledger .total").inner_text()
    assert page.locator(f"#{prefix}-shown .state.used").count()
    # The plan now knows how long it takes.
    page.locator(f"#{prefix}-plan").get_by_text("First word after").wait_for()
    assert not window.errors


def test_the_page_that_the_answer_comes_from_is_marked(visit, screenshot):
    window = visit()
    upload(window, "Document", MEDIA / "pages.pdf")
    page = window.page
    page.locator("#document-shown .preview").wait_for()
    # A drawing comes from one page; lines depend a little on how many pages there are.
    for question, marked, most in (
        ("What is drawn here?", 2, 1),
        ("What is printed on the first page?", 1, 3),
    ):
        page.locator("#document-question textarea").fill(question)
        page.locator("#document-ask").click()
        sources = page.locator("#document-shown figure.source")
        source = sources.filter(has_text=f"pages.pdf page {marked}")
        source.wait_for()
        assert sources.count() <= most
        assert "times less likely" in source.inner_text()
    # The second question began where the first had read the pages.
    assert "read before" in page.locator("#document-ledger .total").inner_text()
    page.locator("#document-plan").get_by_text("has been read with these settings").wait_for()
    screenshot(page, "document")


def test_answers_by_time_appear_row_by_row_and_move_the_player(visit):
    window = visit()
    upload(window, "Audio", MEDIA / "words.flac")
    page = window.page
    page.locator("#audio-shown .preview").wait_for()
    page.evaluate(
        """() => {
          window.rows = new Set();
          const table = document.querySelector('#audio-transcript');
          new MutationObserver(() => window.rows.add(table.querySelectorAll('tbody tr').length))
            .observe(table, {subtree: true, childList: true});
        }"""
    )
    page.locator("#audio-transcribe").click()
    rows = page.locator("#audio-transcript tbody tr")
    rows.filter(has_text=re.compile(r"Go\.\s*$")).wait_for()  # not "Go. …", while it is asked
    assert [row.split("\t")[-1].strip() for row in rows.all_inner_texts()] == [
        "Left.",
        "Seven.",
        "Stop.",
        "Go.",
    ]
    assert len(page.evaluate("[...window.rows]")) > 2  # seen growing
    rows.nth(2).locator("button.seek").click()
    page.wait_for_function(
        """() => {
          const medium = document.querySelector('#audio-medium');
          const roots = [medium, ...[...medium.querySelectorAll('*')].map(e => e.shadowRoot)];
          return roots.filter(Boolean).flatMap(r => [...r.querySelectorAll('audio')])
            .some(player => Math.abs(player.currentTime - 2) < 0.1);
        }"""
    )
    assert not window.errors


@pytest.mark.slow
def test_stop_ends_the_reading_of_a_long_file(visit, tmp_path):
    long = tmp_path / "long.wav"
    noise = np.random.default_rng(0).normal(0, 3000, 16_000 * 900)
    soundfile.write(long, noise.astype(np.int16), 16_000)
    window = visit()
    upload(window, "Audio", long)
    page = window.page
    page.locator("#audio-shown .preview").wait_for()
    page.locator("#audio-ask").click()
    page.wait_for_timeout(1500)
    assert not page.locator("#audio-answer textarea").input_value()  # it is being read
    page.locator("#audio-stop").click()
    begin = time.monotonic()
    page.wait_for_function(
        "document.querySelector('#audio-answer textarea').value.startsWith('Stopped')"
    )
    # The model is free: the next question need not wait for the end of the reading.
    other = visit()
    upload(other, "Document", MEDIA / "digit.png")
    other.page.locator("#document-question textarea").fill("Which digit is written here?")
    other.page.locator("#document-ask").click()
    other.page.locator("#document-shown .shown").wait_for()
    assert "Three" in other.page.locator("#document-answer textarea").input_value()
    waited = time.monotonic() - begin
    page.locator("#audio-ask").click()
    begin = time.monotonic()
    page.locator("#audio-shown .shown").wait_for()
    assert waited < time.monotonic() - begin


@pytest.mark.slow
def test_the_resolution_of_pictures_changes_the_plan(visit):
    window = visit()
    upload(window, "Document", MEDIA / "digit.png")
    page = window.page
    page.locator("#document-shown .preview").wait_for()
    as_asked = planned(window, "document")
    page.locator("#document-more > button, #document-more .label-wrap").first.click()
    resolution = page.locator("#document-image-tokens input[type=number]")
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while planned(window, "document") == as_asked and time.monotonic() < deadline:
        resolution.fill("8")  # again: the panel that opens may yet draw the field anew, with its 0
        resolution.press("Tab")
        page.wait_for_timeout(1000)
    assert planned(window, "document") < as_asked


def test_the_plan_changes_with_the_budget_and_the_overlay_shows_what_was_dropped(visit, screenshot):
    window = visit()
    upload(window, "Video", MEDIA / "clip.mp4")
    page = window.page
    page.locator("#video-shown .preview").wait_for()
    as_asked = planned(window, "video")
    budget = page.locator("#video-budget input[type=number]")
    budget.fill("224")
    budget.press("Tab")
    page.locator("#video-plan").get_by_text("Lowered to fit the budget").wait_for()
    assert planned(window, "video") < as_asked
    page.locator("#video-ask").click()
    page.locator("#video-shown .shown").wait_for()
    assert page.locator("#video-shown .over-dropped").count()
    screenshot(page, "video")


@pytest.mark.slow
def test_a_reducer_and_its_rate_change_the_plan_and_what_is_kept(visit, screenshot):
    window = visit()
    upload(window, "Audio", MEDIA / "recording.wav")
    page = window.page
    page.locator("#audio-shown .preview").wait_for()
    as_asked = planned(window, "audio")
    page.locator("#audio-more > button, #audio-more .label-wrap").first.click()
    choice = page.locator("#audio-audio-reducer input")
    choice.click()
    page.get_by_role("option", name="uniform").click()
    page.locator("#audio-plan").get_by_text("uniform(0.5)").first.wait_for()
    assert planned(window, "audio") < as_asked
    page.locator("#audio-more > button, #audio-more .label-wrap").first.click()
    page.locator("#audio-ask").click()
    page.locator("#audio-shown .wave-dropped").first.wait_for(state="attached")
    screenshot(page, "audio")


@pytest.mark.slow
def test_a_timestamp_moves_the_player(visit):
    window = visit()
    upload(window, "Video", MEDIA / "clip.mp4")
    page = window.page
    last = page.locator("#video-shown button.seek").last
    last.click()
    seconds = float(last.get_attribute("data-seconds"))
    assert seconds > 1
    page.wait_for_function(
        "seconds => Math.abs(document.querySelector('#video-medium video').currentTime - seconds)"
        " < 0.1",
        arg=seconds,
    )


@pytest.mark.slow
def test_one_click_on_an_example_answers_it(visit):
    window = visit()
    panel = window.open_tab("Document")
    panel.get_by_role("button", name="digit.png").click()
    window.page.locator("#document-shown .shown").wait_for()
    assert "Three" in window.page.locator("#document-answer textarea").input_value()


@pytest.mark.slow
def test_a_bad_file_is_a_message_and_the_next_file_is_answered(visit, tmp_path):
    bad = tmp_path / "broken.pdf"
    bad.write_bytes(b"%PDF-1.4 and then nothing of the kind")
    window = visit()
    upload(window, "Document", bad)
    page = window.page
    page.locator("#document-plan .message", has_text="broken.pdf").wait_for()
    page.locator("#document-ask").click()
    page.wait_for_function(
        "document.querySelector('#document-answer textarea').value.startsWith('Not answered.')"
    )
    page.locator("#document-medium").get_by_role("button", name="Clear").click()
    page.locator("#document-plan .message", has_text="Choose a file").wait_for()
    upload(window, "Document", MEDIA / "ticket.pdf")
    page.locator("#document-shown .preview").wait_for()
    page.locator("#document-ask").click()
    page.locator("#document-shown .shown").wait_for()
    assert "TOTAL" in page.locator("#document-answer textarea").input_value()


@pytest.mark.slow
def test_two_settings_are_compared_side_by_side(visit, screenshot):
    window = visit()
    window.open_tab("Compare")
    page = window.page
    page.locator("#compare-medium input[type=file]").set_input_files(str(MEDIA / "clip.mp4"))
    page.locator("#compare-b-plan .total").wait_for()
    page.locator("#compare-a-plan .total").wait_for()
    assert planned(window, "compare-b") < planned(window, "compare-a")
    page.locator("#compare-ask").click()
    page.locator("#compare-difference .compare table").wait_for()
    for side in "ab":
        assert page.locator(f"#compare-{side}-answer textarea").input_value()
    assert page.locator("#compare-b-shown .over-dropped").count()
    assert not page.locator("#compare-a-shown .over-dropped").count()
    screenshot(page, "compare")
