"""Panels are well-formed fragments that state the numbers of the ledger and of the evidence."""

import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

import omni
from omni.pace import Estimate
from omni.panels import compare_panel, evidence_panel, ledger_panel, plan_panel, preview_panel
from tests.support import tiny_omni

MEDIA = Path(__file__).parents[2] / "examples" / "media"
EVIL = '<img src=x onerror="alert(1)">.png'
REDUCTION = {"video": "evs(0.5)", "audio": "uniform(0.4)", "image": "random(0.3)"}
VOID = {"img", "br", "image", "rect", "path"}


class Fragment(HTMLParser):
    """A fragment as a list of elements, refused where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    digit = tmp_path_factory.mktemp("media") / EVIL
    shutil.copy(MEDIA / "digit.png", digit)
    files = [digit, MEDIA / "clip.mp4", MEDIA / "recording.wav", MEDIA / "ticket.pdf"]
    return tiny_omni.assistant().stream("What?", *files, reduction=REDUCTION, max_new_tokens=4)


@pytest.fixture(scope="module")
def preview(stream) -> Fragment:
    return Fragment(preview_panel(stream.request))


@pytest.fixture(scope="module")
def reply(stream, preview) -> omni.Reply:
    for _ in stream:
        pass
    return stream.reply()


def pictures(fragment: Fragment) -> list[str]:
    sources = [tag.get("src") or tag.get("href", "") for tag in fragment.all("img")]
    return sources + [tag.get("href", "") for tag in fragment.all("image")]


def test_the_plan_has_every_count_and_says_when_time_is_not_known(stream):
    plan = stream.plan
    text = Fragment(plan_panel(plan)).text
    assert f"{plan.prompt_tokens:,} tokens" in text
    assert "known after the first answer" in text
    for entry in plan.media:
        for stage in entry.stages[:-1]:
            assert f"{stage.name} {stage.count:,}" in text


def test_the_plan_states_an_estimate_of_time(stream):
    estimate = Estimate(first_word_s=0.04, last_word_s=132.0)
    text = Fragment(plan_panel(stream.plan, estimate)).text
    assert "less than 0.1 s" in text
    assert "about 2 min" in text


def test_what_a_budget_lowered_stands_in_the_plan():
    plan = tiny_omni.assistant().plan(
        "What?", MEDIA / "clip.mp4", max_tokens=240, max_new_tokens=16
    )
    assert plan.lowered
    text = Fragment(plan_panel(plan)).text
    assert all(change in text for change in plan.lowered)


def test_a_preview_shows_pages_frames_and_sound_before_anything_ran(preview, stream):
    frames = sum(item.grid[0] for item in stream.request.media if item.modality == "video")
    assert len(preview.all("img")) == frames + 2  # a picture and a page
    labels = [svg["aria-label"] for svg in preview.all("svg")]
    assert len(labels) == 2
    assert labels[0].startswith("Waveform of recording.wav")
    assert labels[1].startswith("Spectrogram of recording.wav")


def test_evidence_shows_every_medium_with_its_state(reply):
    fragment = Fragment(evidence_panel(reply))
    for entry in reply.evidence:
        assert f"{entry['kept']:,} of " in fragment.text
    states = [tag["class"] for tag in fragment.all("span") if "state" in tag.get("class", "")]
    assert {f"state {entry['state']}" for entry in reply.evidence} <= set(states)
    assert [tag for tag in fragment.all("path") if tag["class"] == "over-dropped"]


def test_buttons_lead_to_the_seconds_of_the_steps(reply):
    seconds = [float(tag["data-seconds"]) for tag in Fragment(evidence_panel(reply)).all("button")]
    clip, recording = reply.evidence[1], reply.evidence[2]
    starts = [step["seconds"][0] for step in clip["steps"]]
    assert seconds == starts + [stretch["seconds"][0] for stretch in recording["timeline"]]


def test_a_ledger_has_tokens_and_seconds(reply):
    text = Fragment(ledger_panel(reply.ledger)).text
    assert f"{reply.ledger.prompt_tokens:,} tokens" in text
    assert f"{reply.ledger.seconds['total']:.2f} s" in text


def test_two_replies_stand_side_by_side_with_what_the_second_saves(reply):
    text = Fragment(compare_panel(reply, reply)).text
    assert f"tokens of the prompt{2 * f'{reply.ledger.prompt_tokens:,}'}" in text
    assert "same answer" in text


def test_nothing_comes_from_outside_and_names_are_text(preview, reply, stream):
    shown = [evidence_panel(reply), ledger_panel(reply.ledger), plan_panel(stream.plan)]
    for fragment in (preview, *map(Fragment, shown)):
        assert EVIL in fragment.text or any(
            EVIL in tag.get("alt", "") for tag in fragment.all("img")
        )
        assert all(source.startswith("data:image/") for source in pictures(fragment))
        assert not fragment.all("script")
        assert not any(name.startswith("on") for _, tag in fragment.elements for name in tag)
