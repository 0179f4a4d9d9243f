"""Mixed receipts: what they are said to say is what their pieces say, in order."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.recipes.mixing import (
    Mixer,
    Piece,
    ReadReceipt,
    ReadRow,
    letters,
    part_of,
)
from finetune.tiny.text_rows import words_of_pieces
from omni.errors import RequestError


def receipt(number, rows=("TEL 1", "SHOP {}", "LOT {} HIGH STREET", "1000{} TOWN", "TOTAL {}")):
    """A receipt whose pieces are named by their words."""
    texts = [row.format(number) for row in rows]
    company, address = texts[1], f"{texts[2]} {texts[3]}"
    return ReadReceipt(
        tuple(
            ReadRow(
                tuple(Piece(f"{word}.png", word, 0.1) for word in text.split()),
                text,
                part_of(text, company, address),
            )
            for text in texts
        ),
        company,
        address,
    )


@given(seed=st.integers(0, 200))
def test_the_answer_is_what_the_pieces_say_in_order(seed):
    drawn = Mixer([receipt(i) for i in range(6)]).draw(np.random.default_rng(seed))
    for part, value in (("company", drawn.company), ("address", drawn.address)):
        assert value == " ".join(p.words for row in drawn.of(part) for p in row.pieces)
    for row in drawn.rows:
        assert row.text == " ".join(piece.words for piece in row.pieces)
        assert all(piece.name == f"{piece.words}.png" for piece in row.pieces)


def test_rows_keep_the_order_of_a_receipt():
    for seed in range(50):
        drawn = Mixer([receipt(i) for i in range(6)]).draw(np.random.default_rng(seed))
        parts = [row.part for row in drawn.rows]
        assert parts[parts.index("company") :][:3] == ["company", "address", "address"]
        assert Counter(parts)["company"] == 1


def test_hardly_any_receipt_comes_twice():
    mixer, rng = Mixer([receipt(i) for i in range(20)]), np.random.default_rng(0)
    drawn = [mixer.draw(rng) for _ in range(300)]
    assert len({(d.company, d.address) for d in drawn}) > 280


def test_every_shop_is_drawn_alike_however_many_receipts_there_are():
    mixer = Mixer([receipt(1)] * 30 + [receipt(2)])
    drawn = Counter(row.text for row in mixer.rows(np.random.default_rng(0), 1000))
    assert 0.7 < drawn["SHOP 2"] / drawn["SHOP 1"] < 1.4


@given(
    words=st.lists(st.text("ABC123", min_size=1, max_size=9), min_size=1, max_size=8),
    data=st.data(),
)
def test_words_fall_to_the_piece_that_shows_them(words, data):
    cuts = data.draw(st.sets(st.integers(1, max(1, len(words) - 1)), max_size=3))
    bounds = [0, *sorted(c for c in cuts if c < len(words)), len(words)]
    pieces = [" ".join(words[a:b]) for a, b in itertools.pairwise(bounds)]
    widths = [10 * len(piece) + 10 for piece in pieces]
    assert words_of_pieces(" ".join(words), widths) == tuple(pieces)


def test_words_that_cannot_be_shared_out_are_left():
    assert words_of_pieces("", [50]) == ()
    assert words_of_pieces("ONE", [50, 50]) == ()
    assert words_of_pieces("A LONGWORD", [50, 50]) == ()  # the cut is in the middle of a word


def test_a_row_belongs_to_the_field_that_holds_its_letters():
    assert part_of("27,JALAN DEDAP 13,", "GIFT & DECO", "27, JALAN DEDAP 13, JOHOR") == "address"
    assert part_of("Gift & deco", "GIFT & DECO", "27, JALAN DEDAP 13, JOHOR") == "company"
    assert part_of("TEL: 13", "GIFT & DECO", "27, JALAN DEDAP 13, JOHOR") == "other"
    assert part_of("*", "GIFT & DECO", "27, JALAN") == "other"
    assert letters("a-1 &") == "A1"


def test_receipts_without_a_field_to_read_are_refused():
    unread = receipt(1, ("TEL", "SHOP {}", "LOT", "10 TOWN", "TOTAL"))._replace(company="ELSE")
    with pytest.raises(RequestError, match="1 receipts"):
        Mixer([unread])
