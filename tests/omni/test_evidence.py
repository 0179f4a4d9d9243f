"""Evidence covers every cell, pixel and second once, whatever the reduction."""

import json
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import omni
from omni.encoding import source_layout
from omni.errors import RequestError
from omni.evidence import CELL_STATES, MediaEvidence, cell_states, make_evidence
from omni.inputs import MediaItem
from omni.prompt import IMAGE_MARKER, VIDEO_MARKER
from tests.support import tiny_omni
from tests.support.layouts import (
    features_for,
    full_layout,
    images,
    provenance,
    shapes,
    sounds,
    videos,
)
from tests.token_reduction.test_laws import ready, single_specs
from token_reduction import TokenLayout, TokenShape, build

few = settings(max_examples=40, deadline=None)


def item_of(shape: TokenShape, **facts: object) -> MediaItem:
    """A medium of that shape with no pixels or samples to it."""
    return MediaItem(
        modality=shape.modality,
        windows=[],
        grid=shape.grid,
        time_spans=full_layout(shape).time_spans,
        token_id=0,
        num_tokens=shape.num_tokens,
        facts=facts,
    )


@st.composite
def groupings(draw: st.DrawFn, before: TokenLayout) -> TokenLayout:
    """Any grouping of the tokens, some left out: what a merging reducer might do."""
    count = before.shape.num_tokens
    groups = draw(st.lists(st.integers(-1, 4), min_size=count, max_size=count))
    assume(max(groups) >= 0)
    found = sorted({group for group in groups if group >= 0}, key=groups.index)
    members = [[i for i, group in enumerate(groups) if group == chosen] for chosen in found]
    return before.merge(
        shape=TokenShape(
            modality=before.shape.modality, grid=before.shape.grid, num_tokens=len(found)
        ),
        cells=torch.tensor([group[0] for group in members]),
        time_spans=before.time_spans,
        group_ptr=torch.tensor([0, *[len(group) for group in members]]).cumsum(0),
        members=torch.tensor([token for group in members for token in group]),
        weights=torch.tensor([1 / len(group) for group in members for _ in group]),
    )


@st.composite
def cases(
    draw: st.DrawFn, shapes: st.SearchStrategy[TokenShape] = shapes
) -> tuple[MediaItem, TokenLayout, TokenLayout]:
    """A medium, its layout after fixed reductions, and after any reducers or grouping."""
    shape = draw(shapes)
    fixed = {
        "image": ["identity", "pixel_shuffle(0.5)"],
        "video": ["identity", "tubelet(2)", "tubelet(3)|pixel_shuffle(0.5)"],
        "audio": ["identity"],
    }[shape.modality]
    before = full_layout(shape)
    for spec in draw(st.sampled_from(fixed)).split("|"):
        before = _reduced(spec, before)
    after = draw(groupings(before)) if draw(st.booleans()) else before
    for spec in draw(st.lists(st.one_of(*single_specs.values()), max_size=3)):
        after = _reduced(spec, after)
    facts: dict[str, object] = {}
    if shape.modality != "audio" and draw(st.booleans()):
        facts = {"width": draw(st.integers(1, 400)), "height": draw(st.integers(1, 400))}
    if shape.modality == "audio":
        facts = {"duration_s": round(shape.grid[0] / 2 * draw(st.floats(0.01, 1.02)), 3)}
    return item_of(shape, **facts), before, after


def _reduced(spec: str, layout: TokenLayout) -> TokenLayout:
    """What the reducer leaves; all, where it does not take such a layout."""
    reducer = ready(spec)
    try:
        reducer.plan(layout.shape)
    except ValueError:
        return layout
    return reducer(features_for(layout.shape), layout)[1]


def states_by_hand(before: TokenLayout, after: TokenLayout) -> list[str]:
    """The definition, in sets of source cells."""
    tokens = [set(sources) for sources in provenance(after)]
    cells = [set(sources) for sources in provenance(before)]
    return [
        "kept" if cell in tokens else "merged" if any(cell & t for t in tokens) else "dropped"
        for cell in cells
    ]


def states_from_boxes(entry: MediaEvidence) -> list[str]:
    """What the boxes of each step say of the middle of every cell; each lies in one box only."""
    _, rows, columns = entry["grid"]
    width, height = entry["size"]
    found = []
    for step in entry["steps"]:
        for row in range(rows):
            for column in range(columns):
                x, y = (column + 0.5) * width / columns, (row + 0.5) * height / rows
                [state] = [
                    state
                    for state in CELL_STATES
                    for left, top, right, bottom in step["boxes"][state]
                    if left <= x < right and top <= y < bottom
                ]
                found.append(state)
    return found


@few
@given(cases())
def test_every_cell_is_kept_merged_or_dropped_as_its_provenance_says(case) -> None:
    _, before, after = case
    found = [CELL_STATES[state] for state in cell_states(before, after).tolist()]
    assert found == states_by_hand(before, after)


@few
@given(cases())
def test_kept_merged_and_dropped_share_out_the_source_cells(case) -> None:
    item, before, after = case
    [entry] = make_evidence([item], [before], [after])
    states = cell_states(before, after)
    sources = [set(found) for found in provenance(before)]
    parts = [
        {
            source
            for cell, state in enumerate(states.tolist())
            if state == wanted
            for source in sources[cell]
        }
        for wanted in range(3)
    ]
    assert sum(map(len, parts)) == torch.Size(item.grid).numel()
    assert set().union(*parts) == set(range(torch.Size(item.grid).numel()))
    assert [entry[name] for name in CELL_STATES] == torch.bincount(states, minlength=3).tolist()


@few
@given(cases(images | videos))
def test_boxes_cover_the_picture_once_and_tell_the_state_of_every_cell(case) -> None:
    item, before, after = case
    [entry] = make_evidence([item], [before], [after])
    states = [CELL_STATES[state] for state in cell_states(before, after).tolist()]
    assert states_from_boxes(entry) == states
    width, height = entry["size"]
    for step in entry["steps"]:
        boxes = [box for state in CELL_STATES for box in step["boxes"][state]]
        area = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)
        assert area == pytest.approx(width * height)


@few
@given(cases(sounds | videos))
def test_times_cover_the_source_without_gap_or_overlap(case) -> None:
    item, before, after = case
    [entry] = make_evidence([item], [before], [after])
    assert item.time_spans is not None
    end = item.facts.get("duration_s", item.time_spans[-1][1])
    stretches = [stretch["seconds"] for stretch in entry["timeline"]]
    parts = [stretches]
    if item.modality == "audio":
        parts.append(sorted(span for state in CELL_STATES for span in entry["spans"][state]))
    else:
        parts.append([step["seconds"] for step in entry["steps"]])
    for spans in parts:
        assert spans[0][0] == 0
        assert spans[-1][1] == pytest.approx(end, abs=1e-3)
        assert all(first[1] == second[0] for first, second in pairwise(spans))
        assert all(start < stop for start, stop in spans)
    assert all(a["state"] != b["state"] for a, b in pairwise(entry["timeline"]))


@few
@given(cases())
def test_parts_add_up_to_the_whole_and_json_changes_nothing(case) -> None:
    item, before, after = case
    [entry] = make_evidence([item], [before], [after])
    assert json.loads(json.dumps(entry)) == entry
    for name in CELL_STATES:
        steps = sum(step[name] for step in entry.get("steps", []))
        seconds = sum(stretch[name] for stretch in entry.get("timeline", []))
        if item.modality == "image":
            assert steps == entry[name]
        elif item.modality == "video":
            assert steps == seconds == entry[name]
        else:
            assert 0 <= entry[name] - seconds <= entry["padding"]


@few
@given(cases(sounds))
def test_seconds_of_a_recording_tell_the_state_of_every_cell(case) -> None:
    item, before, after = case
    [entry] = make_evidence([item], [before], [after])
    states = cell_states(before, after).tolist()
    assert item.time_spans is not None
    for (start, stop), state in zip(item.time_spans, states, strict=True):
        if start >= item.facts["duration_s"]:
            continue
        middle = (start + min(stop, item.facts["duration_s"])) / 2
        [found] = [
            name
            for name in CELL_STATES
            for begin, end in entry["spans"][name]
            if begin <= middle < end
        ]
        assert found == CELL_STATES[state]


def test_an_unreduced_medium_is_one_box_or_one_span():
    for shape in (TokenShape.full("image", (1, 4, 6)), TokenShape.full("audio", (9, 1, 1))):
        layout = full_layout(shape)
        [entry] = make_evidence([item_of(shape)], [layout], [layout])
        assert entry["state"] == "used"
        if shape.modality == "image":
            assert entry["steps"][0]["boxes"] == {
                "kept": [[0, 0, 6, 4]],
                "merged": [],
                "dropped": [],
            }
        else:
            assert entry["spans"] == {"kept": [[0, 4.5]], "merged": [], "dropped": []}


def test_a_video_without_times_is_refused():
    layout = TokenLayout.full("video", (2, 2, 2))
    with pytest.raises(RequestError, match=r"media is video without times.*omni's processor"):
        make_evidence([item_of(layout.shape)], [layout], [layout])


# ---------------------------------------------------------------- from real media


@pytest.fixture(scope="module")
def assistant() -> omni.Assistant:
    return tiny_omni.assistant()


def evidence_of(assistant, text, media, **options) -> list[MediaEvidence]:
    inputs = assistant.processor.from_text(text, media, options=omni.MediaOptions(**options))
    before = [source_layout(assistant.model, item) for item in inputs.media]
    after = [layout for _, layout in assistant.model.encode(inputs.media)]
    return make_evidence(inputs.media, before, after)


def test_frames_that_sampling_left_out_are_listed_with_their_seconds(assistant):
    clip = assistant.processor.load_media(tiny_omni.clip(24, 36, 64), fps=8.0)
    [entry] = evidence_of(
        assistant, VIDEO_MARKER, [clip], reduction={"video": "evs(0.5)"}, num_frames=5
    )
    assert entry["not_sampled"] == {
        "frames": 19,
        "of": 24,
        "seconds": [[0.125, 0.625], [0.75, 1.375], [1.5, 2.125], [2.25, 2.875]],
    }
    assert [step["frames"] for step in entry["steps"]] == [[1, 2], [3, 4], [5, 5]]
    assert entry["timeline"][0]["seconds"][0] == 0
    assert entry["timeline"][-1]["seconds"][1] == 3
    assert entry["steps"][0]["state"] == "used"
    assert entry["size"] == [64, 36]
    assert entry["sound"] == "none"


def test_tiles_lie_where_they_were_cut_from_the_picture(assistant):
    tiling = tiny_omni.assistant(dynamic_resolution=False, force_image_size=32, max_num_tiles=2)
    picture = tiling.processor.load_media(tiny_omni.picture(100, 200))
    entries = evidence_of(tiling, IMAGE_MARKER, [picture])
    boxes = [entry["steps"][0]["boxes"]["kept"] for entry in entries]
    assert boxes == [[[0, 0, 100, 100]], [[100, 0, 200, 100]], [[0, 0, 200, 100]]]


@pytest.mark.parametrize("seconds", [0.02, 0.5, 2.4899, 30.1])
def test_a_recording_is_listed_to_its_last_sample(assistant, seconds):
    sound = assistant.processor.load_media(tiny_omni.tone(seconds), sampling_rate=16_000)
    [entry] = evidence_of(assistant, "<so_embedding>", [sound])
    assert entry["spans"] == {"kept": [[0, round(seconds, 3)]], "merged": [], "dropped": []}
    assert entry["padding"] == (1 if seconds == 0.02 else 0)


def test_an_hour_of_sound_stays_small():
    shape = TokenShape.full("audio", (45_000, 1, 1))
    spans = tuple((i * 0.08, (i + 1) * 0.08) for i in range(45_000))
    before = TokenLayout.full("audio", shape.grid, spans)
    nothing = torch.empty(45_000, 0)
    sizes = {}
    for spec in ("identity", "uniform(0.5)"):
        _, after = build(spec)(nothing, before)
        [entry] = make_evidence([item_of(shape, duration_s=3600.0)], [before], [after])
        assert len(entry["timeline"]) == 1
        sizes[spec] = len(json.dumps(entry))
    assert sizes["identity"] < 1000
    assert sizes["uniform(0.5)"] < 45_000 * 20  # every other token goes: the worst there is
