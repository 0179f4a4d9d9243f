"""How much the class tokens of a ViT look at each patch in its last block.

    a[i] = mean over heads and class tokens c of softmax over all tokens of (q[c] . k[i] * scaling)

One row of the attention matrix a head, computed beside the block from its own projections: fused
kernels never write the matrix down, and here none has to.

Shape legend
  n = items, T = tokens of an item (class and register tokens in front), c = class tokens.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@contextmanager
def watch_class_attention(tower: Any) -> Iterator[list[Tensor]]:
    """Record the attention of the class tokens while this thread runs the tower inside the block.

    Args:
        tower: A `RadioTower` (or transformers' `RadioModel`) with at least one class token.

    Yields:
        A list to which every pass of the tower appends a float32 vector, one value a patch, in the
        order of the patches. An item's values are probabilities; those of class and register
        tokens are left out.

    Raises:
        ValueError: If the tower has no class token.
    """
    config = tower.config
    if not config.num_cls_tokens:
        raise ValueError(
            "This tower has no class token (num_cls_tokens is 0), so nothing says what it attends "
            "to; choose a reducer that needs no attention."
        )
    seen: list[Tensor] = []
    watching = threading.get_ident()  # other threads may run the same tower meanwhile

    def record(attention: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() != watching:
            return
        hidden_states = args[0] if args else kwargs["hidden_states"]
        bounds = kwargs.get("cu_seqlens")
        items = (
            [hidden_states]  # (n, T, D), of equal length
            if bounds is None
            else hidden_states.split(bounds.diff().tolist(), dim=1)
        )
        for item in items:
            received = class_attention(attention, item, config.num_cls_tokens)
            seen.append(received[:, config.num_summary_tokens :].flatten())

    handle = tower.encoder.layer[-1].attention.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@torch.no_grad()
def class_attention(
    attention: Any, hidden_states: Float[Tensor, "items tokens hidden"], num_class_tokens: int
) -> Float[Tensor, "items tokens"]:
    """The share of the class tokens' attention that falls to each token.

    Autocast changes nothing here, so that training chooses the tokens that inference does.

    Args:
        attention: transformers' `RadioAttention`.
        hidden_states: Its input, class tokens first.
        num_class_tokens: How many class tokens there are.
    """
    with torch.autocast(hidden_states.device.type, enabled=False):  # the cue chooses tokens
        hidden_states = _as_weights(hidden_states, attention.k_proj.weight)
        queries = attention.q_proj(hidden_states[:, :num_class_tokens])
        keys = attention.k_proj(hidden_states)
        q, k = (
            rows.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2).float()
            for rows in (queries, keys)
        )  # (n, heads, c, head_dim), (n, heads, T, head_dim)
        scores = q @ k.transpose(2, 3) * attention.scaling
    return scores.softmax(dim=-1).mean(dim=(1, 2))


def _as_weights(rows: Tensor, weight: Tensor) -> Tensor:
    """Rows in the dtype of a weight, from which autocast may part them; quantised ones take any."""
    return rows.to(weight.dtype) if weight.is_floating_point() else rows
