"""The page for everyone: by keyboard, with a screen reader, light and dark, on a phone; offline."""

from urllib.parse import urlsplit

import pytest

from tests.demo.conftest import MEDIA

TABS = ["Chat", "Document", "Video", "Audio", "Compare"]


def show_evidence(window, name: str) -> None:
    """Answer an example, so that the tab shows all that it can."""
    panel = window.open_tab(name)
    if name in ("Document", "Video", "Audio"):
        # Of documents the one of several pages, whose sources are marked.
        panel.locator("button.sample").nth(1 if name == "Document" else 0).click()
        window.page.locator(f"#{name.lower()}-shown .shown").wait_for()
    if name == "Document":
        window.page.locator("#document-shown figure.source").first.wait_for()
    if name == "Audio":
        window.page.locator("#audio-transcribe").click()
        window.page.locator("#audio-transcript tbody tr").wait_for()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_violation(visit, scheme):
    from axe_playwright_python.sync_playwright import Axe

    window = visit(color_scheme=scheme)
    found = []
    for name in TABS:
        show_evidence(window, name)
        window.page.wait_for_timeout(500)  # colours fade in
        for violation in Axe().run(window.page).response["violations"]:
            if violation["impact"] in ("serious", "critical"):
                where = [node["html"][:160] for node in violation["nodes"][:3]]
                found.append((name, violation["id"], where))
    assert found == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 820, 1440])
def test_no_width_needs_scrolling_sideways(visit, width, screenshot):
    window = visit()
    window.page.set_viewport_size({"width": width, "height": 900})
    for name in ("Chat", "Video", "Audio"):
        if window.page.get_by_role("tab", name=name, exact=True).is_visible():
            show_evidence(window, name)
        widest = window.page.evaluate("document.documentElement.scrollWidth")
        assert widest <= width, name
        if (width, name) == (390, "Video"):
            screenshot(window.page, "phone")


def test_a_question_is_asked_with_the_keyboard_alone(visit):
    window = visit()
    page = window.page
    page.get_by_role("tab", name="Chat", exact=True).focus()
    for _ in range(2):  # arrows move between tabs
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent.trim()") == "Document":
            break
    page.keyboard.press("Enter")
    page.locator("#document-question").wait_for()
    page.locator("#document-medium input[type=file]").set_input_files(str(MEDIA / "ticket.pdf"))
    page.locator("#document-shown .preview").wait_for()

    wanted = "document-question"
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate(
            "id => document.activeElement.closest('#' + id) !== null"
            " && document.activeElement.tagName === 'TEXTAREA'",
            wanted,
        ):
            break
    else:
        raise AssertionError("The question is not reached with the Tab key")
    page.keyboard.press("Control+A")
    page.keyboard.type("What is printed here?")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "document-ask"
    outline = page.evaluate(
        "getComputedStyle(document.activeElement).boxShadow"
        " + getComputedStyle(document.activeElement).outlineStyle"
    )
    assert outline != "nonenone"  # where the focus is can be seen
    page.keyboard.press("Enter")
    page.locator("#document-shown .shown").wait_for()
    assert "TOTAL" in page.locator("#document-answer textarea").input_value()


@pytest.mark.slow
def test_every_control_has_a_name_and_the_page_a_heading(visit):
    window = visit()
    page = window.page
    assert page.get_by_role("heading", level=1).count() == 1
    for name in TABS[1:]:
        panel = window.open_tab(name)
        for role in ("button", "slider", "spinbutton", "textbox", "combobox", "checkbox"):
            for control in panel.get_by_role(role).all():
                if control.is_visible():
                    named = control.evaluate(
                        "e => e.ariaLabel || e.textContent.trim() || e.title"
                        " || (e.labels && e.labels.length > 0) || e.getAttribute('aria-labelledby')"
                    )
                    assert named, control.evaluate("e => e.outerHTML")[:200]


def test_the_page_asks_no_other_machine_for_anything(visit):
    window = visit()
    for name in ("Document", "Video", "Audio"):
        show_evidence(window, name)
    hosts = {urlsplit(url).hostname for url in window.requests if url.startswith("http")}
    assert hosts == {"127.0.0.1"}
    assert window.errors == []
