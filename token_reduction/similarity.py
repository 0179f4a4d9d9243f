"""Cosine similarity between many rows, a bounded piece of the matrix at a time.

Similarity only chooses, so nothing here has a gradient, and it is computed in float32
whatever the features are and whatever autocast says (bfloat16 ties often, and training would
choose other tokens than inference).
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

# Numbers in one piece of a similarity matrix: 64 MiB in float32.
MAX_SCORES = 2**24


@torch.no_grad()
def unit_rows(features: Float[Tensor, "items tokens dim"]) -> Float[Tensor, "items tokens dim"]:
    """Rows scaled to length one, in float32; a row of zeros stays one."""
    return F.normalize(features.float(), dim=-1)


def dot_products(
    queries: Float[Tensor, "items queries dim"], keys: Float[Tensor, "items keys dim"]
) -> Float[Tensor, "items queries keys"]:
    """Every query times every key of its item, in the dtype of the rows even under autocast."""
    with torch.autocast(queries.device.type, enabled=False):
        return queries @ keys.transpose(1, 2)


def score_chunks(
    queries: Float[Tensor, "items queries dim"], keys: Float[Tensor, "items keys dim"]
) -> Iterator[tuple[slice, Float[Tensor, "items chunk keys"]]]:
    """Dot products of every query with every key of its item, for some queries at a time.

    Yields:
        Which queries, and their scores; at most `MAX_SCORES` of them unless one query has more.
    """
    items, num_queries, _ = queries.shape
    rows = max(1, MAX_SCORES // max(1, items * keys.shape[1]))
    for start in range(0, num_queries, rows):
        chunk = slice(start, min(start + rows, num_queries))
        yield chunk, dot_products(queries[:, chunk], keys)


def other_chunks(
    rows: Float[Tensor, "items tokens dim"],
) -> Iterator[tuple[slice, Float[Tensor, "items chunk tokens"]]]:
    """As `score_chunks` of all rows with each other, where a row and itself score -inf."""
    for chunk, scores in score_chunks(rows, rows):
        own = torch.arange(chunk.start, chunk.stop, device=rows.device)
        scores[:, own - chunk.start, own] = -torch.inf
        yield chunk, scores


@torch.no_grad()
def nearest(
    queries: Float[Tensor, "items queries dim"], keys: Float[Tensor, "items keys dim"]
) -> tuple[Float[Tensor, "items queries"], Int[Tensor, "items queries"]]:
    """The largest dot product of each query and the key that has it, ties to the earliest."""
    best = [scores.max(dim=2) for _, scores in score_chunks(queries, keys)]
    return torch.cat([b.values for b in best], 1), torch.cat([b.indices for b in best], 1)


def largest_per_item(
    scores: Float[Tensor, "items tokens"], num_kept: int
) -> Int[Tensor, "items kept"]:
    """Indices of the largest scores of each item, ties to the earliest, in ascending order."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    return order[:, :num_kept].sort(dim=1).values
