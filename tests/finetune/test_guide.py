"""Places of characters: the right tokens of the right picture, and a loss that only they lower."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from finetune.guide import (
    FACT,
    SAID_HEAD,
    SHOWN_HEAD,
    ReadingGuide,
    Span,
    count_marks,
    find_places,
    mark,
    mark_prompt,
)
from finetune.tiny.joint_pool import pack_rows
from finetune.tiny.model_config import build_model, processor_settings
from finetune.tiny.spelling import mark_answers, spell_answers
from finetune.tiny.subjects import Subject
from finetune.tiny.tokenizer import build_tokenizer
from finetune.tiny.turns import chat, reading_turn
from omni.errors import RequestError
from omni.inputs import collate
from omni.media import load_media
from omni.processor import OmniProcessor

TOKENIZER = build_tokenizer()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(len(TOKENIZER)).requires_grad_(True)


def read(model, lines):
    """A conversation about pictures of 32 x 512 pixels, each with a line."""
    rng = np.random.default_rng(len(lines[0][0]))
    pixels = [rng.integers(0, 256, (32, 512, 3), dtype=np.uint8) for _ in lines]
    subjects = [
        Subject("line", load_media(p), {"label": text}, edges=edges)
        for p, (text, edges) in zip(pixels, lines, strict=True)
    ]
    processor = OmniProcessor(TOKENIZER, model.config, processor_settings())
    turn = reading_turn(rng, subjects)
    inputs = processor(chat(pixels, [turn], answered=True), with_labels=True)
    inputs = spell_answers(inputs, [turn], TOKENIZER)
    return mark_answers(inputs, [turn], [[n] for n in range(len(lines))], TOKENIZER)


@pytest.fixture(scope="module")
def tall(model):
    """A sample about one picture of 128 x 128 pixels, to be marked."""
    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    subject = Subject("line", load_media(pixels), {"label": "A"})
    turn = reading_turn(np.random.default_rng(0), [subject])
    processor = OmniProcessor(TOKENIZER, model.config, processor_settings())
    return processor(chat([pixels], [turn], answered=True), with_labels=True)


def line(model, text, edges):
    """A conversation about one picture."""
    return read(model, [(text, edges)])


@pytest.fixture(scope="module")
def packed(model):
    samples = [
        line(model, "AB12", np.asarray([0.0, 0.25, 0.5, 0.75, 1.0])),
        line(model, "a longer line", None),
        line(model, "xyz", np.asarray([0.5, 0.6, 0.7, 0.8])),
    ]
    inputs = pack_rows(samples, 0)
    return inputs, find_places(inputs)


def test_each_character_is_predicted_from_its_own_sample_and_shown_by_its_own_columns(packed):
    inputs, places = packed
    width = inputs.media[0].grid[2] // 2
    characters = [
        TOKENIZER.decode([int(inputs.labels[row, query + 1])])
        for row, query in zip(places.rows, places.queries, strict=True)
    ]
    assert "".join(characters) == "AB12xyz"
    is_placeholder = inputs.input_ids == inputs.media[0].token_id
    for row, query, visible, current in zip(
        places.rows, places.queries, places.visible, places.current, strict=True
    ):
        assert visible[query]
        assert not visible[query + 1 :].any()
        assert len(set(inputs.segment_ids[row, visible].tolist())) == 1
        assert is_placeholder[row, current].all()
        assert not (current & ~visible).any()
    columns = [(row.nonzero().min() - places.current[0].nonzero()[0]) for row in places.current[:4]]
    expected = [max(0, share * width - 0.5) for share in (0, 0.25, 0.5, 0.75)]
    np.testing.assert_allclose(np.ravel(columns), expected, atol=1)
    assert torch.equal(places.previous[1:4], places.current[:3])
    assert torch.equal(places.previous[4], places.current[4])  # the first of another line


def test_lines_of_several_pictures_are_each_shown_by_their_own_picture(model):
    edges = np.linspace(0, 1, 4)
    sample = read(model, [("abc", edges), ("def", edges)])
    inputs = pack_rows([sample], 0)
    places = find_places(inputs)
    behind = (places.queries + 1).tolist()
    assert TOKENIZER.decode(inputs.labels[0, behind]) == "abcdef"
    assert behind[3] == behind[2] + 2  # the line's end is between them, and shown nowhere
    first, second = inputs.media
    shift = second.start - first.start
    assert torch.equal(places.current[3:], places.current[:3].roll(shift, 1))
    assert torch.equal(places.previous[3], places.current[2])  # where reading goes on from


def test_the_first_character_of_a_row_does_not_follow_the_last_of_another_row(model):
    edges = np.linspace(0, 1, 3)
    apart = collate(
        [line(model, "AB", edges), line(model, "CD", edges)], pad_token_id=0, padding_side="right"
    )
    places = find_places(apart)
    assert places.rows.tolist() == [0, 0, 1, 1]
    assert torch.equal(places.previous[2], places.current[2])
    assert torch.equal(places.previous[3], places.current[2])


def test_without_known_places_there_is_nothing_to_guide(model):
    unknown = line(model, "AB", None)
    assert find_places(unknown) is None
    assert count_marks(unknown) == 0


def test_a_picture_whose_tokens_were_reduced_cannot_be_marked(model):
    sample = line(model, "AB", None)
    sample.media[0] = replace(sample.media[0], num_tokens=3)
    with pytest.raises(RequestError, match="all of its 16 tokens"):
        mark(sample, [(sample.num_tokens - 1, 0, Span(0.0, 1.0))])


def marked(sample, span):
    """Rows and columns of the picture's tokens that show a part of it."""
    item = mark(sample, [(sample.num_tokens - 1, 0, span)]).media[0]
    width = item.grid[2] // 2
    return {divmod(token, width) for token in item.facts[FACT][0].tokens}


def test_a_part_without_a_height_is_as_high_as_the_picture(tall):
    height, width = (side // 2 for side in tall.media[0].grid[1:])
    assert marked(tall, Span(0.0, 1.0)) == {(y, x) for y in range(height) for x in range(width)}
    for left in np.linspace(0, 0.9, 7):
        whole = marked(tall, Span(left, left + 0.1))
        assert whole == marked(tall, Span(left, left + 0.1, 0.0, 1.0))
        assert {y for y, _ in whole} == set(range(height))


def test_parts_from_top_to_bottom_are_shown_by_their_own_rows_and_together_by_all(tall):
    height, _ = (side // 2 for side in tall.media[0].grid[1:])
    whole = marked(tall, Span(0.3, 0.5))
    for count in (1, 2, 3, height, 2 * height):
        edges = np.linspace(0, 1, count + 1)
        parts = [marked(tall, Span(0.3, 0.5, top, bottom)) for top, bottom in pairwise(edges)]
        assert set.union(*parts) == whole
        for part, top, bottom in zip(parts, edges, edges[1:], strict=False):
            rows = {y for y, _ in part}
            assert {x for _, x in part} == {x for _, x in whole}
            assert min(rows) <= top * height + 1e-6
            assert max(rows) + 1 >= bottom * height - 1e-6
            assert len(rows) <= (bottom - top) * height + 2


def test_what_the_prompt_says_is_looked_up_by_a_head_of_its_own(model):
    sample = line(model, "AB12", np.linspace(0, 1, 5))
    shown = find_places(sample)
    said = [(int(query) + 1, [3 + n]) for n, query in enumerate(shown.queries[:3])]
    places = find_places(mark_prompt(sample, said))
    assert places.heads.tolist() == [SHOWN_HEAD] * 4 + [SAID_HEAD] * 3
    assert torch.equal(places.current[:4], shown.current)
    assert torch.equal(places.previous[:4], shown.previous)
    assert places.current[4:].nonzero()[:, 1].tolist() == [3, 4, 5]
    assert places.previous[4:].nonzero()[:, 1].tolist() == [3, 3, 4]


def test_the_loss_is_what_attention_misses_and_training_lowers_it(model, packed):
    inputs, _ = packed
    first_row = [item for item in inputs.media if item.row == 0]
    start = first_row[0].start + first_row[0].num_tokens + 4
    inputs = mark_prompt(inputs, [(start, [1, 2]), (start + 1, [2])])
    places = find_places(inputs)
    assert set(places.heads.tolist()) == {SHOWN_HEAD, SAID_HEAD}
    guide = ReadingGuide(model)
    model(**inputs)
    first, last = guide.mixers
    expected = []
    for mixer, right in ((first, places.previous), (last, places.current)):
        queries, keys, _ = mixer.project(guide.inputs[mixer])
        for n in range(len(places.rows)):
            row, query = places.rows[n], places.queries[n]
            head = places.heads[n]
            sharing = queries.shape[1] // keys.shape[1]
            scores = keys[row, head // sharing] @ queries[row, head, query] / mixer.head_dim**0.5
            weights = scores.where(places.visible[n], torch.tensor(-torch.inf)).softmax(0)
            expected.append(-weights[right[n]].sum().log())
    torch.testing.assert_close(guide.loss(places), 0.5 * torch.stack(expected).sum())

    optimizer = torch.optim.Adam(model.language_model.model.layers.parameters(), lr=1e-3)
    found = []
    for _ in range(12):
        model(**inputs)
        loss = guide.loss(places)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert found[-1] < 0.7 * found[0]
