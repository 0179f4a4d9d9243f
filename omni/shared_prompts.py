"""Prompts that begin with the same media are read once, and each goes on by itself.

    lot 0   <img> ... </img> | What is this?         two rows of the cache, from one reading
                             | Which colour has it?
    lot 1   <img> ... </img> | What is this?         one row

Each lot is one row while its common beginning is encoded and read. Then the cache's rows are
copied, one for each prompt, and all of them read what is their own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from omni.generation import Prefilled, continue_prompt, prefill
from omni.inputs import OmniInputs, collate
from omni.model import OmniModel

Lot = Sequence[OmniInputs]


def shares_media(one: OmniInputs, other: OmniInputs) -> bool:
    """Whether two prompts about the same files planned them alike and begin with them.

    A budget may lower the media of a long question more than those of a short one.

    Args:
        one: One row.
        other: One row, whose media come from the same files in the same order.
    """
    plans = [
        [(item.start, item.block_length, item.grid, dict(item.chosen)) for item in prompt.media]
        for prompt in (one, other)
    ]
    return plans[0] == plans[1] and _media_end(one) <= common_length([one, other])


def common_length(lot: Lot) -> int:
    """Ids that all prompts of a lot begin with; at least one of each is left for itself."""
    shortest = min(prompt.input_ids.shape[1] for prompt in lot) - 1
    first = lot[0].input_ids[0, :shortest]
    for prompt in lot[1:]:
        differs = (prompt.input_ids[0, : len(first)] != first).nonzero()
        first = first[: int(differs[0])] if len(differs) else first
    return len(first)


def prefill_lots(
    model: OmniModel,
    lots: Sequence[Lot],
    *,
    pad_token_id: int,
    answer_tokens: int,
    rows: int = 0,
) -> Iterator[Prefilled]:
    """Read prompts, those of a lot together as far as they are the same.

    Args:
        model: Its decoder is ours, or every lot is one prompt.
        lots: Prompts of one row each; in a lot each pair satisfies `shares_media`.
        pad_token_id: Fills up shorter rows.
        answer_tokens: Room to make in the cache for an answer.
        rows: Prompts at a time; 0 is all.

    Yields:
        The next prompts, flat and in order, ready for `omni.generation.generate`; take the answers
        before the next ones.
    """
    prompts = [prompt for lot in lots for prompt in lot]
    step = rows or max(1, len(prompts))
    parts = [slice(start, start + step) for start in range(0, len(prompts), step)]
    if all(len(lot) <= 1 for lot in lots):
        for part in parts:
            batch = collate(prompts[part], pad_token_id=pad_token_id, padding_side="left")
            yield prefill(model, batch, answer_tokens=answer_tokens)
        return

    ends = [common_length(lot) for lot in lots]
    heads = [_head(lot[0], end) for lot, end in zip(lots, ends, strict=True)]
    tails = [_tail(prompt, end) for lot, end in zip(lots, ends, strict=True) for prompt in lot]
    lot_of = [number for number, lot in enumerate(lots) for _ in lot]
    room = answer_tokens + max(tail.input_ids.shape[1] for tail in tails)
    batch = collate(heads, pad_token_id=pad_token_id, padding_side="left")
    read = prefill(model, batch, answer_tokens=room)
    snapshot = read.cache.snapshot()
    for part in parts:
        own = collate(tails[part], pad_token_id=pad_token_id, padding_side="left")
        cache = read.cache
        cache.restore(snapshot)
        cache.select(lot_of[part])
        seen = read.attention_mask[torch.tensor(lot_of[part], device=read.attention_mask.device)]
        mask = torch.cat([seen, own.attention_mask.to(seen.device)], dim=1)
        yield continue_prompt(model, cache, own.input_ids, mask)


def _media_end(prompt: OmniInputs) -> int:
    """Where a prompt's last medium has ended."""
    return max((item.start + item.block_length for item in prompt.media), default=0)


def _head(prompt: OmniInputs, end: int) -> OmniInputs:
    return replace(
        prompt,
        input_ids=prompt.input_ids[:, :end],
        attention_mask=prompt.attention_mask[:, :end],
    )


def _tail(prompt: OmniInputs, start: int) -> OmniInputs:
    return replace(
        prompt,
        input_ids=prompt.input_ids[:, start:],
        attention_mask=prompt.attention_mask[:, start:],
        media=[],
    )
