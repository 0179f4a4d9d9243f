"""Which prompts are answered together."""

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from omni.batching.items import Item
from omni.batching.lots import MAX_GROUP_TOKENS, MIN_FILLED, SHORT_TOKENS, Task, find_groups


def task(number, length):
    """A task of an item of its own whose prompt has so many tokens."""
    item = Item(name=f"{number}", paths=(), questions=(), row={}, error=None)
    made = Task(item=item, sha256=None, span=None, question="?", key="", error_key="")
    made.inputs = SimpleNamespace(num_tokens=length)
    return made


@given(
    st.lists(st.integers(1, 2 * MAX_GROUP_TOKENS), max_size=40),
    st.integers(1, 16),
    st.integers(1, 3),
)
def test_groups_hold_each_task_once_and_stay_within_the_bounds(lengths, batch_size, at_once):
    tasks = [task(number, length) for number, length in enumerate(lengths)]
    groups = list(find_groups(tasks, batch_size, at_once=at_once))
    answered = [t.item.name for group in groups for lot in group for t in lot]
    assert sorted(answered) == sorted(t.item.name for t in tasks)
    for group in groups:
        found = [lot.length for lot in group]
        assert 1 <= len(group) <= batch_size
        assert found == sorted(found, reverse=True)
        if len(group) > 1:
            assert len(group) * found[0] <= MAX_GROUP_TOKENS / at_once
            assert found[0] <= SHORT_TOKENS or found[-1] >= MIN_FILLED * found[0]


def test_a_long_prompt_is_not_padded_into_by_short_ones():
    groups = find_groups([task(n, length) for n, length in enumerate([30, 700, 25, 40])], 16)
    assert [[lot.length for lot in group] for group in groups] == [[700], [40, 30, 25]]
