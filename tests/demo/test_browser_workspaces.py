"""Documents, videos and recordings in their workspaces, in a real browser."""

import re

import pytest

from tests.demo.conftest import MEDIA, Visit

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
    if name == "Document":
        screenshot(page, prefix)
    assert not window.errors


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
