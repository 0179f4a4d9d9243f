"""Requests under a budget: within it, monotone, never against what the request set itself."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jaxtyping
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from omni.budget import DEFAULT_REDUCERS, MAX_RATE, MIN_FRAMES, parse_bytes, raise_rate
from omni.errors import ContextLengthError, RequestError
from omni.footprint import OVERHEAD_BYTES, Runtime, footprint
from omni.inputs import OmniInputs
from omni.ledger import make_ledger
from omni.media import Audio, Image, Video
from omni.options import MediaOptions
from omni.processor import OmniProcessor
from omni.prompt import MarkedMedium, Page
from tests.support import shapes, tiny_omni
from token_reduction import TokenShape, build, parse

PROCESSORS = [
    tiny_omni.omni_processor(max_model_len=20_000),
    tiny_omni.omni_processor(tiny_omni.omni_config(video_pruning_rate=0.5), max_model_len=3_000),
    tiny_omni.omni_processor(
        tiny_omni.omni_config(dynamic_resolution=False, force_image_size=32, max_num_tiles=6)
    ),
]
MARKERS = {Image: "<image>", Page: "<image>", Video: "<video>", Audio: "<so_embedding>"}

media = st.one_of(
    st.builds(shapes.picture, st.integers(1, 400), st.integers(1, 400)),
    st.builds(shapes.page, st.integers(50, 900), st.integers(50, 900)),
    st.builds(
        shapes.video,
        st.integers(1, 900),
        st.sampled_from([1.0, 25.0, 29.97]),
        st.integers(16, 400),
        st.integers(16, 400),
    ),
    st.builds(shapes.recording, st.floats(0.05, 90)),
)
wishes = st.fixed_dictionaries(
    {},
    optional={
        "fps": st.sampled_from([0.5, 2.0, 8.0]),
        "num_frames": st.integers(1, 40),
        "dpi": st.integers(30, 200),
        "reduction": st.dictionaries(
            st.sampled_from(["image", "video", "audio"]),
            st.sampled_from(["identity", "uniform(0.3)", "random(0.6, seed=1)"]),
        ),
    },
)


@dataclass(frozen=True)
class Request:
    processor: OmniProcessor
    text: str
    media: list[MarkedMedium]
    wishes: dict[str, Any]
    answer_tokens: int

    def build(self, **budget: Any) -> OmniInputs:
        return self.processor.from_text(
            self.text,
            self.media,
            options=MediaOptions(**self.wishes, **budget),
            answer_tokens=self.answer_tokens,
        )

    def needs(self, inputs: OmniInputs) -> tuple[int, int]:
        """Tokens and bytes, the answer included."""
        memory = footprint(
            self.processor.config,
            inputs.media,
            prompt_tokens=inputs.num_tokens,
            answer_tokens=self.answer_tokens,
            runtime=Runtime(),
        )
        return inputs.num_tokens + self.answer_tokens, memory.total_bytes


@st.composite
def requests(draw: st.DrawFn) -> Request:
    processor = draw(st.sampled_from(PROCESSORS))
    some = draw(st.lists(media, max_size=4))
    text = "".join(f"{MARKERS[type(medium)]}\n" for medium in some) + "x" * draw(
        st.integers(0, 200)
    )
    return Request(processor, text, some, draw(wishes), draw(st.integers(1, 200)))


token_budgets = st.integers(1, 6_000)
byte_budgets = st.integers(OVERHEAD_BYTES, OVERHEAD_BYTES + 100_000_000)
budgets = st.one_of(
    st.fixed_dictionaries({"max_tokens": token_budgets}),
    st.fixed_dictionaries({"max_memory": byte_budgets}),
    st.fixed_dictionaries({"max_tokens": token_budgets, "max_memory": byte_budgets}),
)


def tokens_of(request: Request, **budget: Any) -> int:
    """Tokens with this budget; none where it is refused."""
    try:
        return request.needs(request.build(**budget))[0]
    except ContextLengthError:
        return 0


@pytest.fixture(autouse=True, scope="module")
def unchecked_shapes() -> Iterator[None]:
    """Without checks of annotated shapes: planning has no tensors, and they take half the time."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def check_within_budget(wanted: Request, budget: dict[str, int]) -> None:
    """A request is refused, or fits; its ledger then has the counts of the prompt's own ids."""
    try:
        inputs = wanted.build(**budget)
    except ContextLengthError:
        return
    tokens, memory = wanted.needs(inputs)
    assert tokens <= budget.get("max_tokens", tokens)
    assert memory <= budget.get("max_memory", memory)
    assert tokens <= wanted.processor.settings.max_model_len
    ids = inputs.input_ids[0]
    ledger = make_ledger(
        wanted.processor.config,
        inputs,
        context_tokens=wanted.processor.settings.max_model_len,
        answer_tokens=wanted.answer_tokens,
    )
    assert ledger.prompt_tokens == len(ids)
    assert ledger.memory_bytes == memory
    is_placeholder = torch.zeros_like(ids, dtype=torch.bool)
    for entry, item in zip(ledger.media, inputs.media, strict=True):
        block = slice(item.start, item.start + entry.stages[-1].count)
        assert entry.stages[-2].count == (ids[block] == item.token_id).sum()
        is_placeholder[block] = ids[block] == item.token_id
    placeholders = torch.isin(ids, torch.tensor([item.token_id for item in inputs.media]))
    assert torch.equal(is_placeholder, placeholders)


def check_monotone(wanted: Request, budgets: list[dict[str, int]]) -> None:
    """A budget that is at least as large in both units never gives fewer tokens."""
    less, more = (
        {unit: choose(budget[unit] for budget in budgets) for unit in budgets[0]}
        for choose in (min, max)
    )
    assert tokens_of(wanted, **less) <= tokens_of(wanted, **more)


SLOW = pytest.mark.slow, pytest.mark.timeout(1800)


@pytest.mark.parametrize("examples", [120, pytest.param(2_500, marks=SLOW)])
def test_no_request_ever_exceeds_its_budget(examples: int) -> None:
    settings(max_examples=examples)(given(requests(), budgets)(check_within_budget))()


@pytest.mark.parametrize("examples", [40, pytest.param(1_000, marks=SLOW)])
def test_more_budget_never_gives_fewer_tokens(examples: int) -> None:
    both = st.fixed_dictionaries({"max_tokens": token_budgets, "max_memory": byte_budgets})
    two = st.lists(both, min_size=2, max_size=2)
    settings(max_examples=examples)(given(requests(), two)(check_monotone))()


@settings(max_examples=50)
@given(requests(), budgets)
def test_what_the_request_sets_itself_is_never_overridden(
    wanted: Request, budget: dict[str, int]
) -> None:
    assume(wanted.wishes)
    try:
        inputs = wanted.build(**budget)
    except ContextLengthError:
        return
    for item in inputs.media:
        given_spec = wanted.wishes.get("reduction", {}).get(item.modality)
        assert given_spec is None or item.reduction == given_spec
        if item.modality == "video" and {"fps", "num_frames"} & set(wanted.wishes):
            assert "num_frames" not in item.asked
        if "page" in item.facts and "dpi" in wanted.wishes:
            assert not {"grid", "tiles", "dpi"} & set(item.asked)


@settings(max_examples=40)
@given(requests())
def test_a_budget_that_is_large_enough_changes_nothing(wanted: Request) -> None:
    try:
        free = wanted.build()
    except ContextLengthError:
        assume(False)
    tokens, memory = wanted.needs(free)
    for budget in ({"max_tokens": tokens}, {"max_memory": memory}, {"max_tokens": 10**9}):
        inputs = wanted.build(**budget)
        assert torch.equal(inputs.input_ids, free.input_ids)
        assert [item.chosen for item in inputs.media] == [item.chosen for item in free.media]
        assert not any(item.asked for item in inputs.media)
        assert inputs.budget.asked_tokens == tokens
        assert inputs.budget.asked_memory_bytes == memory


@settings(max_examples=20)
@given(requests())
def test_a_refusal_names_the_least_that_would_do(wanted: Request) -> None:
    assume(wanted.media or wanted.text)
    with pytest.raises(ContextLengthError) as refused:
        wanted.build(max_tokens=1)
    found = re.search(r"at least ([\d,]+) tokens .* but the budget is 1 tokens", str(refused.value))
    least = int(found[1].replace(",", ""))
    assume(least <= wanted.processor.settings.max_model_len)
    assert tokens_of(wanted, max_tokens=least) == least
    assert tokens_of(wanted, max_tokens=least - 1) == 0


PROCESSOR = PROCESSORS[0]
CLIP = shapes.video(900, 25.0, 64, 64)


def lowered(*some: MarkedMedium, max_tokens: int, **wishes: Any) -> OmniInputs:
    text = "".join(MARKERS[type(medium)] for medium in some)
    return Request(PROCESSOR, text, list(some), wishes, 16).build(max_tokens=max_tokens)


def test_rates_give_way_first_then_frames_then_resolution() -> None:
    some = (CLIP, shapes.picture(300, 300), shapes.recording(20))
    asked = lowered(*some, max_tokens=10**6)
    needed = asked.num_tokens + 16
    seen = []
    for max_tokens in range(needed, 0, -20):
        try:
            video, image, sound = lowered(*some, max_tokens=max_tokens).media
        except ContextLengthError:
            break
        rates = {parse(item.reduction)[0].args for item in (video, image, sound)}
        assert len(rates) == 1  # all media stand on the same rung
        seen.append((*rates.pop(), video.grid[0], image.grid[1] * image.grid[2]))
    rates, frames, patches = zip(*[step for step in seen if len(step) == 3], strict=True)
    assert list(rates) == sorted(rates)
    assert max(rates) == MAX_RATE
    assert all(rate == MAX_RATE for rate, left in zip(rates, frames, strict=True) if left < 16)
    assert all(
        left == MIN_FRAMES
        for left, size in zip(frames, patches, strict=True)
        if size < max(patches)
    )
    assert min(frames) == MIN_FRAMES
    assert min(patches) >= PROCESSOR.config.min_num_patches


def test_an_item_says_what_was_asked_where_a_budget_lowered_it() -> None:
    needed = lowered(CLIP, max_tokens=10**6).num_tokens + 16
    [item] = lowered(CLIP, max_tokens=needed - 24).media
    assert item.asked == {"reduction": "identity"}
    assert item.chosen["reduction"] == item.reduction
    assert parse(item.reduction)[0].name == DEFAULT_REDUCERS["video"]
    [item] = lowered(CLIP, max_tokens=needed // 2).media
    assert item.asked["num_frames"] == 16
    assert item.chosen["num_frames"] == item.grid[0] < 16


def test_a_refusal_names_what_stands_in_the_way_and_what_would_do_without() -> None:
    wishes = {"num_frames": 12, "reduction": {"video": "identity", "audio": "uniform(0.5)"}}
    with pytest.raises(
        ContextLengthError,
        match=r"sets num_frames=12, reduction video=identity, which a budget does not change; "
        r"with that left open it needs \d+ tokens",
    ):
        lowered(CLIP, max_tokens=200, **wishes)


def test_memory_is_refused_with_the_numbers() -> None:
    wanted = Request(PROCESSOR, "<video>", [CLIP], {}, 16)
    with pytest.raises(
        ContextLengthError, match=r"at least \d+\.\d\d [kM]B of memory .* budget is 1\.00 kB"
    ):
        wanted.build(max_memory=1_000)


def test_a_training_sample_takes_the_same_budget() -> None:
    turns = [
        {"role": "user", "content": [{"type": "media", "media": CLIP}]},
        {"role": "assistant", "content": "A square."},
    ]
    for budget in ({"max_tokens": 600}, {"max_memory": "77MB"}):
        whole = PROCESSOR(turns, with_labels=True)
        sample = PROCESSOR(turns, with_labels=True, options=MediaOptions(**budget))
        assert sample.num_tokens < whole.num_tokens
        assert sample.num_tokens <= budget.get("max_tokens", sample.num_tokens)
        said = sample.labels[sample.labels != -100]
        assert torch.equal(said, whole.labels[whole.labels != -100])


@pytest.mark.parametrize(
    ("amount", "expected"),
    [(5, 5), ("8GB", 8 * 10**9), ("1.5 GiB", 3 * 2**29), ("500mb", 5 * 10**8), ("12", 12)],
)
def test_an_amount_of_memory_is_read(amount: int | str, expected: int) -> None:
    assert parse_bytes(amount) == expected


@pytest.mark.parametrize("amount", ["much", "-1", 0, "8 apples", ""])
def test_what_is_no_amount_of_memory_is_refused(amount: int | str) -> None:
    with pytest.raises(RequestError, match="expected bytes as a whole number"):
        MediaOptions(max_memory=amount)


def test_a_budget_below_one_token_is_refused() -> None:
    with pytest.raises(RequestError, match="max_tokens is 0"):
        MediaOptions(max_tokens=0)


@given(
    st.sampled_from(["identity", "evs(0.7)", "evs(rate=0.25)", "uniform(0.5)|evs(0.5)"]),
    st.floats(0, MAX_RATE),
    st.tuples(st.integers(2, 20), st.integers(1, 8), st.integers(1, 8)),
)
def test_a_raised_rate_removes_its_share_of_what_the_base_leaves(base, rate, grid) -> None:
    rate = round(rate, 2)
    shape = TokenShape.full("video", grid)
    left = build(base).num_tokens(shape)
    raised = build(raise_rate(base, "video", rate)).num_tokens(shape)
    least = max(left * (1 - rate) - 2, 0)
    assert least <= raised <= left
