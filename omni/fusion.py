"""Put media embeddings where their placeholders are, and check that both sides agree."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from omni.errors import AlignmentError
from omni.inputs import MediaItem
from token_reduction import TokenLayout


def fuse(
    input_ids: Int[Tensor, "batch seq"],
    media: Sequence[MediaItem],
    encoded: Sequence[tuple[Tensor, TokenLayout]],
    embed: Callable[[Tensor], Tensor],
    placeholder_ids: Sequence[int],
    attention_mask: Bool[Tensor, "batch seq"] | None = None,
) -> tuple[Float[Tensor, "batch seq hidden"], Int[Tensor, "batch seq"]]:
    """Lay every block for the counts that reduction left and fill in the embeddings.

    1. Check that every placeholder belongs to exactly one block.
    2. Lay each block again: labels, delimiters and kept placeholders, same length as planned.
    3. Embed the text's ids and put them and the media's embeddings into one tensor.

    Args:
        input_ids: Prompt ids with placeholders.
        media: Items with their blocks.
        encoded: For each item its embeddings ``(tokens, hidden)`` and layout.
        embed: The decoder's embedding layer.
        placeholder_ids: Ids that stand for media.
        attention_mask: True where a token is real; padding is never taken for a placeholder.

    Returns:
        Decoder embeddings, and the ids as they are after laying.

    Raises:
        AlignmentError: Placeholders without features, or features without placeholders.
    """
    _check_blocks(input_ids, media, placeholder_ids, attention_mask)
    ids = input_ids.clone()
    places: list[tuple[int, Tensor]] = []
    for item, (features, layout) in zip(media, encoded, strict=True):
        block, offsets = item.lay(layout.tokens_per_step)
        if len(offsets) != features.shape[0]:
            raise AlignmentError(
                f"{item.name}: the layout counts {len(offsets)} token(s) but there are "
                f"{features.shape[0]} feature vector(s). A reducer must return features and "
                "layout of the same length."
            )
        ids[item.row, item.start : item.start + len(block)] = torch.tensor(block).to(ids)
        places.append((item.row, torch.tensor(offsets, device=ids.device) + item.start))
    is_text = torch.ones_like(ids, dtype=torch.bool)
    for place in places:
        is_text[place] = False
    text = embed(ids[is_text])
    # Filled in place, with gradients all the same: an hour of sound is not copied once more.
    embeddings = text.new_empty(*ids.shape, text.shape[-1])
    embeddings[is_text] = text
    for place, (features, _) in zip(places, encoded, strict=True):
        embeddings[place] = features.to(text)
    return embeddings, ids


def _check_blocks(
    input_ids: Tensor,
    media: Sequence[MediaItem],
    placeholder_ids: Sequence[int],
    attention_mask: Tensor | None,
) -> None:
    """Every placeholder lies in one block, and no two blocks touch the same column."""
    is_placeholder = torch.isin(input_ids, torch.tensor(list(placeholder_ids)).to(input_ids))
    if attention_mask is not None:
        is_placeholder &= attention_mask
    found = is_placeholder.sum(1).tolist()
    planned = [0] * input_ids.shape[0]
    taken = torch.zeros_like(is_placeholder)
    for item in media:
        place = (item.row, slice(item.start, item.start + item.block_length))
        if item.start + item.block_length > input_ids.shape[1] or bool(taken[place].any()):
            raise AlignmentError(
                f"{item.name}: its block of {item.block_length} token(s) at column {item.start} "
                f"of row {item.row} leaves the row of {input_ids.shape[1]} token(s) or overlaps "
                "another medium. Do not cut or move ids after the processor made them."
            )
        taken[place] = True
        planned[item.row] += item.num_tokens
    outside = (is_placeholder & ~taken).sum(1).tolist()
    for row, (have, want, stray) in enumerate(zip(found, planned, outside, strict=True)):
        if have != want or stray:
            raise AlignmentError(
                f"Row {row} of input_ids has {have} placeholder token(s), {stray} of them outside "
                f"any medium's block, but its media need {want}. Each medium needs exactly its own "
                "placeholders: build ids and media together with the processor, and do not "
                "truncate them."
            )
