"""The report is one well-formed file that needs nothing else and hides nothing."""

import os
import shutil
from html.parser import HTMLParser
from pathlib import Path

import PIL.Image
import pytest

import omni
from omni import report
from omni.errors import RequestError
from omni.report import check_report_path
from omni.views import Extent, clock, share
from tests.support import tiny_omni

MEDIA = Path(__file__).parents[2] / "examples" / "media"
EVIL = '<img src=x onerror="alert(1)">.png'
QUESTION = '<script>alert("x")</script> & <b>what</b>?'
DASH = "\N{EN DASH}"
VOID = {"meta", "br", "image", "rect", "path"}  # `image` and the shapes close themselves


class Page(HTMLParser):
    """A page as a list of elements, refused where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.section = ""
        self.text = ""
        self.texts: dict[str, str] = {}
        self.rows: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "section":
            self.section = dict(attrs).get("id") or dict(attrs)["aria-labelledby"]
        if tag == "tr":
            self.rows.setdefault(self.section, []).append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        self.texts[self.section] = self.texts.get(self.section, "") + data + " "
        if "tr" in self.open:
            self.rows[self.section][-1] += data + " "

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def assistant() -> omni.Assistant:
    return tiny_omni.assistant()


@pytest.fixture(scope="module")
def reply(assistant, tmp_path_factory) -> omni.Reply:
    digit = tmp_path_factory.mktemp("media") / EVIL
    shutil.copy(MEDIA / "digit.png", digit)
    files = [digit, MEDIA / "clip.mp4", MEDIA / "recording.wav", MEDIA / "ticket.pdf"]
    reduction = {"video": "evs(0.5)", "audio": "uniform(0.4)", "image": "random(0.3)"}
    return assistant.ask(QUESTION, *files, reduction=reduction, max_new_tokens=8)


@pytest.fixture(scope="module")
def html(reply, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("report") / "out.html"
    reply.save_report(path)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def saved(reply: omni.Reply, path: Path) -> Page:
    reply.save_report(path)
    return Page(path.read_text(encoding="utf-8"))


def test_it_needs_nothing_from_outside_and_runs_nothing(html, page):
    addresses = [
        attributes[name]
        for _, attributes in page.elements
        for name in ("href", "src", "srcset", "action", "poster", "xlink:href")
        if name in attributes
    ]
    assert addresses
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert not {"script", "link", "iframe", "object", "embed", "form"} & {
        tag for tag, _ in page.elements
    }
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert "url(" not in html
    assert "@import" not in html


def test_question_answer_and_file_names_are_text_not_markup(page, reply):
    assert QUESTION in page.text
    assert reply.text in page.text
    assert EVIL in page.text
    assert page.all("img") == []
    assert any(EVIL in attributes.get("aria-label", "") for attributes in page.all("svg"))


def test_every_medium_is_listed_with_its_state_and_its_counts(page, reply):
    rows = page.rows["inputs"][1:]
    assert len(rows) == len(reply.evidence) == 4
    for row, entry in zip(rows, reply.evidence, strict=True):
        assert Path(entry["name"]).name in row
        counts = [entry["state"], *(entry[name] for name in ("kept", "merged", "dropped"))]
        assert " ".join(map(str, [*counts, entry["tokens"]])) in " ".join(row.split())


def test_every_second_and_page_is_listed_as_used_reduced_or_dropped(page, reply):
    _, clip, sound, ticket = reply.evidence
    rows = page.rows["medium-2"][1:]
    assert len(rows) == len(clip["steps"])
    for row, step in zip(rows, clip["steps"], strict=True):
        start, stop = map(clock, step["seconds"])
        assert f"{start} {DASH} {stop}" in row
        assert step["state"] in row
    for start, stop in clip["not_sampled"]["seconds"]:
        assert f"{clock(start)} {DASH} {clock(stop)}" in page.texts["medium-2"]
    assert f"{clip['not_sampled']['frames']} of 16 frames" in page.texts["medium-2"]
    for row, stretch in zip(page.rows["medium-3"][1:], sound["timeline"], strict=True):
        assert f"{clock(stretch['seconds'][0])} {DASH} {clock(stretch['seconds'][1])}" in row
        assert stretch["state"] in row
    assert ticket["page"] == 1
    assert f"page 1 {ticket['state']}" in " ".join(page.rows["medium-4"][1].split())


def test_the_ledger_is_there_in_full(page, reply):
    text = " ".join(page.texts["ledger"].split())
    for entry in reply.ledger.media:
        for stage in entry.stages[:-1]:
            assert f"{stage.name} {stage.count:,}" in text
    assert f"prompt {reply.ledger.prompt_tokens:,}" in text
    assert f"Answer {reply.ledger.answer_tokens:,} tokens" in text
    for name, seconds in reply.ledger.seconds.items():
        assert f"{name} {seconds:.3f} s" in text


def test_what_a_budget_lowered_stands_beside_the_ledger(assistant, tmp_path):
    picture = tiny_omni.picture(64, 64)
    needed = assistant.plan("What?", picture, max_new_tokens=4).prompt_tokens + 4
    reply = assistant.ask("What?", picture, max_new_tokens=4, max_tokens=needed - 1)
    path = tmp_path / "out.html"
    reply.save_report(path)
    [change] = reply.ledger.lowered
    text = Page(path.read_text(encoding="utf-8")).texts["ledger"]
    assert f"Lowered to fit the budget {change}" in " ".join(text.split())


def test_a_file_name_that_is_no_text_is_no_reason_to_lose_the_report(assistant, tmp_path):
    source = tmp_path / os.fsdecode(b"caf\xe9.png")  # as in archives of old systems
    try:
        PIL.Image.new("RGB", (64, 64), "red").save(source, "PNG")
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    path = tmp_path / "out.html"
    assistant.ask("What?", source, max_new_tokens=4).save_report(path)
    assert "caf?.png" in path.read_text(encoding="utf-8")


def test_pictures_have_a_text_and_tables_have_heads(page):
    charts = page.all("svg")
    assert len(charts) >= 4
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)
    assert all(head["scope"] in ("col", "row") for head in page.all("th"))
    assert page.all("html") == [{"lang": "en"}]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(link["href"].removeprefix("#") in ids for link in page.all("a"))


def test_frames_that_are_not_shown_are_counted(reply, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "EXTENT", Extent(frames=2))
    page = saved(reply, tmp_path / "few.html")
    steps = len(reply.evidence[1]["steps"])
    assert steps > 2
    assert f"2 of {steps} steps are shown, evenly chosen; {steps - 2} are not." in page.text
    assert len(page.rows["medium-2"][1:]) == steps


def test_pictures_that_are_not_shown_say_so(reply, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "EXTENT", Extent(pictures=1))
    page = saved(reply, tmp_path / "few.html")
    assert "Its picture is not shown" in page.texts["medium-4"]
    assert "Its picture is not shown" not in page.texts["medium-1"]


def test_merging_inside_the_tower_is_said_not_to_be_counted(assistant, reply, tmp_path):
    note = "Merging inside the vision tower"
    reduction = {"image": "tome(0.3)|uniform(0.5)"}
    digit = MEDIA / "digit.png"
    tower = assistant.ask("What?", digit, reduction=reduction, max_new_tokens=4)
    assert note in saved(tower, tmp_path / "tower.html").text
    assert note not in saved(reply, tmp_path / "plain.html").text


def test_a_question_without_media_and_a_conversation_have_reports_too(assistant, tmp_path):
    page = saved(assistant.ask("Who are you?", max_new_tokens=4), tmp_path / "text.html")
    assert "the question came without media" in page.text
    turns = [
        {"role": "user", "content": "First?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": [{"type": "text", "text": "And second?"}]},
    ]
    page = saved(assistant.chat(turns, max_new_tokens=4), tmp_path / "chat.html")
    assert "And second?" in page.text
    assert "First?" not in page.text


def test_a_report_that_cannot_be_written_is_refused(reply, tmp_path):
    with pytest.raises(RequestError, match=r"report .* is a folder"):
        check_report_path(tmp_path)
    with pytest.raises(RequestError, match=r"should go to the folder .*nowhere, which does not"):
        reply.save_report(tmp_path / "nowhere" / "out.html")
    with pytest.raises(RequestError, match=r"cannot be written: File name too long"):
        reply.save_report(tmp_path / ("a" * 300))


def test_a_reply_without_its_request_has_no_report(reply, tmp_path):
    bare = omni.Reply(text=reply.text, ledger=reply.ledger)
    with pytest.raises(RequestError, match="no request"):
        bare.save_report(tmp_path / "out.html")


def test_times_and_shares_read_well():
    assert clock(2.5) == "2.50 s"
    assert clock(2.5, end_s=75) == "0:02.50"
    assert clock(3725.25) == "62:05.25"
    assert [share(part, 1000) for part in (0, 1, 500, 999, 1000)] == [
        "0 %",
        "1 %",
        "50 %",
        "99 %",
        "100 %",
    ]
    assert share(0, 0) == "0 %"
