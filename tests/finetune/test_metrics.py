"""Laws of the metrics: a true answer is worth 1, a wrong one less, and none leaves 0 to 1."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.metrics import METRICS, json_anls

words = st.text(alphabet="ab c1.", max_size=12)


@pytest.mark.parametrize("name", sorted(METRICS.keys() - {"json_anls"}))
@given(found=words, true=words)
def test_scores_are_shares_and_the_true_answer_has_all(name, found, true) -> None:
    assert 0 <= METRICS[name](found, true) <= 1
    assert METRICS[name](true, true) == 1


@given(st.dictionaries(st.sampled_from("abc"), words.filter(str.strip)))
def test_an_object_is_judged_field_by_field(fields) -> None:
    true = json.dumps(fields)
    assert json_anls(f"It is {true}.", true) == 1
    for name in fields:
        left = {k: v for k, v in fields.items() if k != name}
        assert json_anls(json.dumps(left), true) == pytest.approx(1 - 1 / len(fields))


@pytest.mark.parametrize("true", ["[1, 2]", "3", "no JSON"])
def test_a_true_answer_that_is_no_object_is_said(true) -> None:
    with pytest.raises(ValueError, match=r"expected a JSON object|Expecting value"):
        json_anls("{}", true)
