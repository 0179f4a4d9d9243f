"""Which page or picture an answer comes from, found by leaving out one at a time.

    support of a page  =  log p(answer | question, all pages)
                        - log p(answer | question, all pages but this one)

in nats, summed over the answer's tokens: without the page, this model would be ``exp(support)``
times less likely to say exactly this. A support of 0 means that the page makes no difference, a
negative one that it speaks against the answer. It says what the answer depends on, not whether the
answer is right; of two pages that say the same neither is missed while the other is there.

The numbers of the pages stay in the prompt ("Page 2 of 3:"), only the page itself is left out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from omni.assistant import Assistant
from omni.errors import RequestError
from omni.generation import score_answer
from omni.inputs import MediaItem

MARKED_NATS = math.log(2)  # a page without which the answer is half as likely, or less
MARKED_SHARE = 0.1  # and which has at least so much of the largest support


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """What one page or picture contributes to an answer.

    Attributes:
        name: Of the medium, as in the evidence.
        nats: Its support.
        is_source: Whether the answer comes from it: the answer is less than half as likely without
            it, and its support is at least a tenth of the largest.
    """

    name: str
    nats: float
    is_source: bool

    @property
    def times(self) -> float:
        """How many times less likely the answer is without it."""
        return math.exp(min(self.nats, 700.0))


def media_support(
    assistant: Assistant, question: str, *media: Any, answer: str, **options: Any
) -> list[Support]:
    """Find out what an answer that was given depends on.

    Media are encoded once, and the prompt is read once for each of them and once more: this takes
    as long as so many first words.

    Args:
        assistant: Which gave the answer.
        question: What was asked.
        media: About what, as in `Assistant.ask`.
        answer: What was answered.
        options: As it was answered with.

    Returns:
        One entry for each page, picture, video and recording, in prompt order.

    Raises:
        OmniError: As `Assistant.ask`, or the answer is empty.
    """
    parts: list[dict[str, Any]] = [{"type": "media", "media": source} for source in media]
    asked = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
    inputs = assistant.prepare([asked], **options)
    answer_ids = torch.tensor(assistant.processor.tokenise(answer), dtype=torch.long)
    if not len(answer_ids):
        raise RequestError("The answer is empty, so nothing can be said of where it comes from.")
    with torch.no_grad():
        embeddings, *_ = assistant.model.embed(inputs.input_ids, inputs.media)
    blocks = medium_blocks(inputs.media)
    nats = leave_out(assistant.model, embeddings, answer_ids, [block for _, block in blocks])
    least = max(MARKED_NATS, MARKED_SHARE * max(nats, default=0.0))
    return [
        Support(name=name, nats=support, is_source=support >= least)
        for (name, _), support in zip(blocks, nats, strict=True)
    ]


def leave_out(
    model: Any,
    embeddings: Float[Tensor, "1 seq hidden"],
    answer_ids: Tensor,
    blocks: Sequence[slice],
) -> list[float]:
    """By how many nats an answer becomes less likely without each of some stretches of its prompt.

    Args:
        model: The model that gave it.
        embeddings: Of the prompt.
        answer_ids: Ids of the answer.
        blocks: Columns of the prompt.

    Returns:
        One number a stretch.
    """
    whole = score_answer(model, embeddings, answer_ids).sum()
    found = []
    for block in blocks:
        rest = torch.cat([embeddings[:, : block.start], embeddings[:, block.stop :]], dim=1)
        found.append(float(whole - score_answer(model, rest, answer_ids).sum()))
    return found


def medium_blocks(media: Sequence[MediaItem]) -> list[tuple[str, slice]]:
    """Columns of each medium with its delimiters; the tiles of a picture share one pair of them.

    Args:
        media: Items of one prompt, in order.
    """
    ends = [item.start + item.block_length for item in media]
    breaks = [after.start > end for end, (_, after) in zip(ends, pairwise(media), strict=False)]
    firsts = [i for i in range(len(media)) if i == 0 or breaks[i - 1]]
    lasts = [i - 1 for i in firsts[1:]] + ([len(media) - 1] if media else [])
    return [
        (media[i].name.partition(" tile ")[0], slice(media[i].start - 1, ends[j] + 1))
        for i, j in zip(firsts, lasts, strict=True)
    ]
