"""Products of a few rows with chosen matrices of a stack, at the rate of the memory.

A product of one row with a small matrix is bound by reading the matrix, but the libraries that
multiply reach a third of the memory's rate at a width of 512, and each product is a call of its
own. Where the columns of every matrix lie one after the other, its product with a row is a sum of
columns, weighted with the numbers of the row: what `embedding_bag` computes, for any number of
matrices in one call, a matrix per thread at a time, at the rate of the memory (docs/adr/0012).

Letters: e matrices in the stack, n outputs, k inputs, p pairs of a row and a matrix.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from omni.backbone.kept import keep_tensors

MAX_COLUMN = 512
"""Longest column, in numbers: the sums of one must stay in the processor's registers."""
SUM = 0
"""What `embedding_bag` calls `mode="sum"`."""


def suits_columns(stack: Tensor) -> bool:
    """Whether products with this stack (e, n, k) are faster by columns."""
    is_plain = stack.dtype == torch.float32 and stack.device.type == "cpu"
    engines = torch.backends.quantized.supported_engines
    return is_plain and stack.shape[1] <= MAX_COLUMN and "fbgemm" in engines


def to_columns(stack: Float[Tensor, "e n k"]) -> Float[Tensor, "e n k"]:
    """Return the same matrices with the numbers of each column side by side in memory."""
    return stack.transpose(1, 2).contiguous().transpose(1, 2)


def is_in_columns(stack: Float[Tensor, "e n k"]) -> bool:
    """Whether a stack lies in memory as `to_columns` makes it, in the type that suits it."""
    _, n, k = stack.shape
    return (
        stack.stride() == (n * k, 1, n)
        and stack.dtype == torch.float32
        and stack.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
    )


def multiply_chosen(
    x: Float[Tensor, "p k"], stack: Float[Tensor, "e n k"], chosen: Int[Tensor, " p"]
) -> Float[Tensor, "p n"]:
    """Return `stack[chosen[i]] @ x[i]` for each row i; the stack lies in columns."""
    _, n, k = stack.shape
    columns = stack.transpose(1, 2).view(-1, n)  # column j of matrix e is row e k + j
    first, starts = _counts(len(x), k, x.device)
    which = torch.add(first, chosen[:, None], alpha=k)  # (p, k)
    y: Tensor = torch.embedding_bag(
        columns, which.view(-1), starts, mode=SUM, per_sample_weights=x.reshape(-1)
    )[0]
    return y


@keep_tensors
def _counts(rows: int, k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The numbers 0 to k - 1, and where each of `rows` bags of k columns starts."""
    return torch.arange(k, device=device), torch.arange(0, rows * k, k, device=device)
