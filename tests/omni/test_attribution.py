"""The support of a page is that of the slow definition: build each prompt anew and score it."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import omni
from omni.attribution import leave_out, media_support, medium_blocks
from omni.errors import RequestError
from omni.generation import score_answer
from tests.support import tiny_omni

MEDIA = Path(__file__).parents[2] / "examples" / "media"
ASSISTANT = tiny_omni.assistant()
# The same sums in another order of chunks: float32 rounding of log-probabilities of size ~6.
TOLERANCE = 2e-4


def slow_score(inputs, answer_ids: torch.Tensor, left_out: slice | None = None) -> float:
    """All positions in one pass, no cache; the left-out columns never existed."""
    model = ASSISTANT.model
    with torch.no_grad():
        embeddings, *_ = model.embed(inputs.input_ids, inputs.media)
        if left_out is not None:
            keep = torch.ones(embeddings.shape[1], dtype=torch.bool)
            keep[left_out] = False
            embeddings = embeddings[:, keep]
        spoken = model.get_input_embeddings()(answer_ids[None])
        logits = model(inputs_embeds=torch.cat([embeddings, spoken], dim=1)).logits[0]
    log_p = logits.log_softmax(-1)
    first = embeddings.shape[1] - 1
    places = range(first, first + len(answer_ids))
    return sum(float(log_p[i, token]) for i, token in zip(places, answer_ids, strict=True))


def prompt(*media):
    parts = [{"type": "media", "media": medium} for medium in media]
    asked = {"role": "user", "content": [*parts, {"type": "text", "text": "Which?"}]}
    return ASSISTANT.prepare([asked])


@settings(max_examples=8)
@given(
    sides=st.lists(st.sampled_from([36, 40, 52]), min_size=1, max_size=3),
    answer=st.text("abc 7", min_size=1, max_size=5),
)
def test_support_equals_the_slow_definition(sides, answer):
    media = [tiny_omni.picture(side, 40) for side in sides]
    inputs = prompt(*media)
    ids = torch.tensor(ASSISTANT.processor.tokenise(answer))
    blocks = medium_blocks(inputs.media)
    found = media_support(ASSISTANT, "Which?", *media, answer=answer)
    whole = slow_score(inputs, ids)
    for support, (name, block) in zip(found, blocks, strict=True):
        assert support.name == name
        assert support.nats == pytest.approx(whole - slow_score(inputs, ids, block), abs=TOLERANCE)


def test_a_block_is_a_medium_with_its_delimiters():
    inputs = prompt(tiny_omni.picture(36, 40), MEDIA / "recording.wav", MEDIA / "pages.pdf")
    ids, row = ASSISTANT.processor.ids, inputs.input_ids[0].tolist()
    blocks = medium_blocks(inputs.media)
    assert [name.rsplit("/", 1)[-1] for name, _ in blocks][1:] == [
        "recording.wav",
        "pages.pdf page 1",
        "pages.pdf page 2",
        "pages.pdf page 3",
    ]
    starts, ends = {ids.image_start, ids.audio_start}, {ids.image_end, ids.audio_end}
    for _, block in blocks:
        assert row[block.start] in starts
        assert row[block.stop - 1] in ends
        assert not {*row[block.start + 1 : block.stop - 1]} & {*starts, *ends}


@given(chunk=st.integers(1, 40))
@settings(max_examples=6)
def test_the_score_does_not_depend_on_the_chunks_and_nothing_left_out_is_nothing(chunk):
    inputs = prompt(tiny_omni.picture(36, 40))
    with torch.no_grad():
        embeddings, *_ = ASSISTANT.model.embed(inputs.input_ids, inputs.media)
    ids = torch.tensor(ASSISTANT.processor.tokenise("abc"))
    at_once = score_answer(ASSISTANT.model, embeddings, ids)
    in_chunks = score_answer(ASSISTANT.model, embeddings, ids, chunk=chunk)
    torch.testing.assert_close(in_chunks, at_once, atol=TOLERANCE, rtol=0)
    assert leave_out(ASSISTANT.model, embeddings, ids, [slice(5, 5)]) == [0.0]


@pytest.mark.parametrize(
    ("question", "read"),  # pages 0 and 2 have a printed line each, page 1 a drawing
    [("What is printed on the first page?", {0}), ("What is drawn here?", {1})],
)
def test_the_page_that_was_read_is_the_source_of_what_was_read(question, read):
    assistant, pages = omni.load(), MEDIA / "pages.pdf"
    answer = assistant.ask(question, pages, max_new_tokens=16).text
    supports = media_support(assistant, question, pages, answer=answer, max_new_tokens=16)
    strongest = max(range(3), key=lambda i: supports[i].nats)
    assert strongest in read
    assert supports[strongest].is_source
    # A page more or less can change how many lines there are; what they say is from the one read.
    # A blue circle is a good guess without its page too: one of nine.
    assert all(supports[strongest].times > 5 * supports[i].times for i in {0, 1, 2} - read)


def test_an_empty_answer_comes_from_nowhere():
    with pytest.raises(RequestError, match="answer is empty"):
        media_support(ASSISTANT, "Which?", tiny_omni.picture(36, 40), answer="")
