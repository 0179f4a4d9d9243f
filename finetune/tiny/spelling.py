"""Answers that are spelled, and where in the pictures their characters stand."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from transformers import PreTrainedTokenizerBase

from finetune.guide import Span, mark
from finetune.tiny.tokenizer import encode_characters
from finetune.tiny.turns import Place
from omni.inputs import IGNORE_INDEX, OmniInputs


def spell_answer(inputs: OmniInputs, text: str, tokenizer: PreTrainedTokenizerBase) -> OmniInputs:
    """Label a sample's answer byte by byte, also where it holds words of the vocabulary.

    Args:
        inputs: One row whose only labelled stretch is the answer with its end token.
        text: The answer.
        tokenizer: From `finetune.tiny.tokenizer`.
    """
    assert inputs.labels is not None
    (places,) = torch.nonzero(inputs.labels[0] != IGNORE_INDEX, as_tuple=True)
    first, last = int(places[0]), int(places[-1])
    spelled = torch.tensor([encode_characters(tokenizer, text)])
    rows = []
    for row in (inputs.input_ids, inputs.labels):
        rows.append(torch.cat([row[:, :first], spelled, row[:, last:]], dim=1))
    return replace(
        inputs,
        input_ids=rows[0],
        labels=rows[1],
        attention_mask=torch.ones_like(rows[0], dtype=torch.bool),
    )


def mark_lines(
    inputs: OmniInputs, lines: Sequence[Float[np.ndarray, " characters+1"] | None]
) -> OmniInputs:
    """Note where the characters of a spelled answer stand.

    Args:
        inputs: One row; the answer has a line a picture.
        lines: Of each picture the shares of its width between the characters. If those of one are
            not known, nothing is noted; nor if a character is of several tokens.
    """
    assert inputs.labels is not None
    positions = torch.nonzero(inputs.labels[0] != IGNORE_INDEX).flatten().tolist()
    known = [edges for edges in lines if edges is not None]
    if len(known) < len(lines) or len(positions) != sum(map(len, known)):
        return inputs  # a line's end, or the answer's, is the one label more than characters
    shown, first = [], 0
    for number, edges in enumerate(known):
        for i, span in enumerate(pairwise(edges.tolist())):
            shown.append((positions[first + i], number, Span(*span)))
        first += len(edges)
    return mark(inputs, shown)


def mark_answer(inputs: OmniInputs, place: Place) -> OmniInputs:
    """Note where the characters of a spelled answer stand on a page.

    Args:
        inputs: One row; each character of its answer is one token.
        place: Of the answer.
    """
    assert inputs.labels is not None
    positions = torch.nonzero(inputs.labels[0] != IGNORE_INDEX).flatten().tolist()[:-1]
    spans = pairwise(place.edges.tolist())
    return mark(
        inputs,
        [
            (position, place.medium, Span(*columns, place.top, place.bottom))
            for position, columns in zip(positions, spans, strict=True)
        ],
    )
