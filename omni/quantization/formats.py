"""Int8 and int4 weights of linear layers: how they are made, stored, multiplied and read back.

    int8    weight   int8  (..., N, K)           w[n, k] = scale[n] q[n, k]
            scale    bf16  (..., N)
    int4    weight   uint8 (..., N / 64, K, 32)  w[n, k] = scale[n] m[n, k / G] q[n, k]
            scale    f32   (..., N)
            scales   bf16  (..., K / G, N, 2)    scale[n] m[n, k / G], and a zero

In int4, q is in -8..7 and the multiplier m of each group of G weights is a whole number in
-15..15 ("progressive" group quantisation as in QServe, arXiv 2405.04532). So m q fits int8 and
the one packed copy serves both ways of multiplying: few rows read it in 4 bits, and for many
rows it is unpacked to an int8 matrix which has exactly the same values.

    few rows     weight only: activations in bfloat16
    many rows    int8 activations with a scale of each row, integer products (`torch._int_mm`)

The bytes of an int4 weight are those that PyTorch's CPU kernel reads under AVX-512, blocks of 64
outputs in which a byte holds outputs j and j + 32. `kernel_block` says what this machine reads.

Letters: m rows, n outputs (N), k inputs (K), G group size; `...` is nothing or the experts.
"""

from functools import cache

import torch
from jaxtyping import BFloat16, Float, Int8, UInt8
from torch import Tensor

from omni.backbone.native.rows import find_library, round_rows, scale_sums

BLOCK = 64
"""Outputs of a packed int4 block; N is padded to a multiple of it."""
GROUP_SIZES = (32, 64, 128)
"""Group sizes that the int4 kernel knows."""
MAX_MULTIPLIER = 15
WEIGHT_ONLY_ROWS = {8: 4, 4: 24}
"""Most rows that are multiplied weight-only, by bits; see docs/adr/0011."""
ROWS_AT_ONCE = 512
"""Rows of one integer product: its int32 result stays near the cache (measured)."""
TINY = 1e-30


# ------------------------------------------------------------------------------------- making


def quantize_int8(
    weight: Float[Tensor, "*experts n k"],
) -> tuple[Int8[Tensor, "*experts n k"], BFloat16[Tensor, "*experts n"]]:
    """Round a weight to int8 with one scale for each output.

    Returns:
        The integers, within -127..127, and the scales.
    """
    weight = weight.float()
    scale = (weight.abs().amax(-1).clamp_min(TINY) / 127).bfloat16()
    return weight.div(scale[..., None].float()).round_().clamp_(-127, 127).to(torch.int8), scale


def quantize_int4(
    weight: Float[Tensor, "n k"], group_size: int
) -> tuple[
    UInt8[Tensor, "blocks k 32"], Float[Tensor, " padded"], BFloat16[Tensor, "groups padded 2"]
]:
    """Round a weight to int4 with one scale for each output and a multiplier for each group.

    The value of largest magnitude in a group is mapped to -8 or near it; of the two multipliers
    next to it the one with the smaller squared error is taken.

    Args:
        weight: The weight; N is padded with zeros to a multiple of `BLOCK`.
        group_size: One of `GROUP_SIZES`, a divisor of K.

    Returns:
        Packed integers, scales of the outputs, and scales and zeros of the groups.

    Raises:
        ValueError: The group size is unknown or does not divide K.
    """
    if group_size not in GROUP_SIZES or weight.shape[1] % group_size:
        raise ValueError(
            f"group size {group_size} for {weight.shape[1]} inputs; expected a divisor among "
            f"{', '.join(map(str, GROUP_SIZES))}."
        )
    padding = (0, 0, 0, -len(weight) % BLOCK)
    padded = torch.nn.functional.pad(weight.float(), padding)
    found = [_quantize_block(block.unflatten(1, (-1, group_size))) for block in padded.split(BLOCK)]
    integers, scale, multiplier = (torch.cat(parts) for parts in zip(*found, strict=True))
    scales = (scale[:, None] * multiplier).t().bfloat16()  # (K / G, n)
    group_scale = torch.stack([scales, torch.zeros_like(scales)], dim=-1)
    return pack_int4(integers), scale, group_scale


def _quantize_block(
    groups: Float[Tensor, "n groups size"],
) -> tuple[Int8[Tensor, "n k"], Float[Tensor, " n"], Float[Tensor, "n groups"]]:
    """Integers, scales and multipliers of a few outputs, so few that they stay in the cache."""
    low, high = groups.amin(-1), groups.amax(-1)
    extreme = torch.where(high > -low, high, low)
    scale = extreme.abs().amax(-1).clamp_min(TINY) / (8 * MAX_MULTIPLIER)
    exact = extreme.abs().div_(8 * scale[:, None])
    # A multiplier is never 0: a group of zeros takes 1.
    sign = torch.where(extreme > 0, -1.0, 1.0)
    tried = [whole.clamp_(1, MAX_MULTIPLIER).mul_(sign) for whole in (exact.ceil(), exact.floor())]
    errors = []
    for multiplier in tried:
        unit = (scale[:, None] * multiplier)[..., None]
        rounded = torch.mul(groups, 1 / unit).round_().clamp_(-8, 7).mul_(unit)
        # In float64 the sum is exact, so that ties do not depend on its order.
        errors.append(rounded.sub_(groups).square_().sum(-1, dtype=torch.float64))
    best = torch.stack(errors).argmin(0, keepdim=True)
    multiplier = torch.stack(tried).gather(0, best)[0]
    unit = (scale[:, None] * multiplier)[..., None]
    integers = torch.mul(groups, 1 / unit).round_().clamp_(-8, 7).to(torch.int8)
    return integers.flatten(1), scale, multiplier


def pack_int4(q: Tensor) -> UInt8[Tensor, "blocks k 32"]:
    """Pack integers in -8..7, (N, K), N a multiple of `BLOCK`."""
    blocks = (q.to(torch.int8) + 8).view(torch.uint8).unflatten(0, (-1, 2, BLOCK // 2))
    low, high = blocks.transpose(2, 3).unbind(1)  # (blocks, k, 32)
    return (low | (high << 4)).contiguous()


@cache
def kernel_block() -> int:
    """Outputs in a block of the layout that PyTorch's int4 kernel reads here; 64 under AVX-512.

    Raises:
        RuntimeError: The kernel's layout is neither of the two known ones.
    """
    q = torch.arange(BLOCK * 32).view(BLOCK, 32) * 7 % 16 - 8
    theirs = torch._convert_weight_to_int4pack_for_cpu((q + 8).int(), 1).flatten()
    for block in (64, 32):
        if torch.equal(theirs, _as_blocks(pack_int4(q), block).flatten()):
            return block
    raise RuntimeError("PyTorch's int4 kernel has a layout that is not known here.")


def _as_blocks(packed: Tensor, block: int) -> Tensor:
    """Re-pack blocks of 64 outputs for a kernel that reads `block` outputs at a time."""
    if block == BLOCK:
        return packed
    values = torch.cat([packed & 15, packed >> 4], dim=-1)  # (..., blocks, k, 64)
    halves = values.unflatten(-1, (2, block)).transpose(-2, -3)  # (..., blocks, 2, k, 32)
    low, high = halves.transpose(-2, -3).unflatten(-1, (2, block // 2)).unbind(-2)
    return (low | (high << 4)).transpose(-2, -3).flatten(-4, -3)


# ------------------------------------------------------------------------------- reading back


def dequantize_int8(weight: Tensor, scale: Tensor) -> Tensor:
    """The float32 weight that an int8 weight stands for: the slow reference."""
    return weight.float() * scale[..., None]


def dequantize_int4(weight: Tensor, scale: Tensor, scales: Tensor) -> Tensor:
    """The float32 weight (N padded, K) that one int4 weight stands for: the slow reference."""
    return unpack_int4(weight, scale, scales).t().float() * scale[:, None]


def unpack_int4(
    weight: UInt8[Tensor, "blocks k 32"],
    scale: Float[Tensor, " n"],
    scales: BFloat16[Tensor, "groups n 2"],
) -> Int8[Tensor, "k n"]:
    """The int8 matrix m q, inputs by outputs."""
    blocks, num_inputs, half = weight.shape
    num_groups = scales.shape[0]
    multiplier = (scales[..., 0].float() / scale).round_().to(torch.int8)
    multiplier = multiplier.view(num_groups, 1, blocks, 2 * half)
    signed = weight.view(torch.int8) ^ -120  # two nibbles in two's complement
    grouped = signed.view(blocks, num_groups, -1, half).permute(
        1, 2, 0, 3
    )  # (k / G, G, blocks, 32)
    whole = torch.empty(*grouped.shape[:3], 2 * half, dtype=torch.int8)
    torch.mul(grouped << 4 >> 4, multiplier[..., :half], out=whole[..., :half])
    torch.mul(grouped >> 4, multiplier[..., half:], out=whole[..., half:])
    return whole.view(num_inputs, -1)


# --------------------------------------------------------------------------------- multiplying


def quantize_rows(x: Float[Tensor, "m k"]) -> tuple[Int8[Tensor, "m k"], Float[Tensor, "m 1"]]:
    """Round activations to int8 with one scale for each row, so that no row depends on another."""
    largest = torch.maximum(x.amax(-1, keepdim=True), -x.amin(-1, keepdim=True)).clamp_min_(TINY)
    return (x * (127 / largest)).round_().to(torch.int8), largest / 127


def integer_product(
    x: Int8[Tensor, "m k"], weight: Int8[Tensor, "k n"], scale: Tensor
) -> Float[Tensor, "m n"]:
    """`x @ weight` in exact integers, times the scale of each output."""
    return torch._int_mm(x, weight).to(torch.float32).mul_(scale)


def is_readable(weight: Tensor) -> bool:
    """Whether PyTorch's weight-only kernels read this weight rightly.

    They take 16 inputs at a time from addresses that are multiples of 16, and check neither: others
    end the process, or give wrong numbers (torch 2.14).
    """
    is_int4 = weight.dtype == torch.uint8
    return weight.data_ptr() % 16 == 0 and (is_int4 or weight.shape[-1] % 16 == 0)


def few_rows(x: Float[Tensor, "m k"]) -> BFloat16[Tensor, "m k"]:
    """Rows as PyTorch's weight-only kernels read them: adjacent, from a multiple of 16 on."""
    rows = x.bfloat16().contiguous()
    return rows if rows.data_ptr() % 16 == 0 else rows.clone()


def weight_only_int8(
    x: BFloat16[Tensor, "m k"], weight: Tensor, scale: Tensor
) -> BFloat16[Tensor, "m n"]:
    """Multiply few rows with an int8 weight (N, K)."""
    return torch._weight_int8pack_mm(x, weight, scale)


def weight_only_int4(
    x: BFloat16[Tensor, "m k"], weight: Tensor, scale: Tensor, scales: Tensor
) -> BFloat16[Tensor, "m n"]:
    """Multiply few rows with an int4 weight (N padded, K)."""
    return torch._weight_int4pack_mm_for_cpu(x, *few_arguments_int4(weight, scale, scales))


def few_arguments_int4(weight: Tensor, scale: Tensor, scales: Tensor) -> tuple[Tensor, int, Tensor]:
    """What PyTorch's kernel gets of an int4 weight: packed integers, group size, scales."""
    packed = _as_blocks(weight, kernel_block()).view(scale.shape[0], -1)
    return packed, weight.shape[1] // scales.shape[0], scales


def linear_int8(
    x: Float[Tensor, "m k"], weight: Tensor, scale: Tensor, *, two_steps: bool = False
) -> Float[Tensor, "m n"]:
    """Multiply rows with an int8 weight (N, K).

    Args:
        x: Rows.
        weight: Integers.
        scale: Scale of each output.
        two_steps: Round activations in two steps, the second for what the first has left: twice
            the products for about 16 bits, where a few large values would drown the others.
    """
    if len(x) <= WEIGHT_ONLY_ROWS[8] and is_readable(weight):
        return weight_only_int8(few_rows(x), weight, scale).float()
    return _in_stretches(x, weight.t(), scale.float(), two_steps=two_steps)


def linear_int4(
    x: Float[Tensor, "m k"], weight: Tensor, scale: Tensor, scales: Tensor
) -> Float[Tensor, "m n"]:
    """Multiply rows with an int4 weight (N padded, K)."""
    if len(x) <= WEIGHT_ONLY_ROWS[4] and is_readable(weight):
        return weight_only_int4(few_rows(x), weight, scale, scales).float()
    return _in_stretches(x, unpack_int4(weight, scale, scales), scale)


@torch.no_grad()
def _in_stretches(x: Tensor, weight: Tensor, scale: Tensor, *, two_steps: bool = False) -> Tensor:
    """Quantise the rows and multiply in integers, `ROWS_AT_ONCE` at a time; without gradients."""
    x = x.float()
    library = find_library() if x.is_cpu else None
    product = x.new_empty(len(x), weight.shape[1])
    for rows, out in zip(x.split(ROWS_AT_ONCE), product.split(ROWS_AT_ONCE), strict=True):
        if library is None:
            _multiply_slowly(rows, weight, scale, out, two_steps=two_steps)
            continue
        for step, (q, units) in enumerate(round_rows(library, rows, two_steps=two_steps)):
            sums = torch._int_mm(q, weight)
            scale_sums(library, sums, scale, units, out, adds=step > 0)
    return product


def _multiply_slowly(
    rows: Tensor, weight: Tensor, scale: Tensor, out: Tensor, *, two_steps: bool
) -> None:
    """One stretch by PyTorch: the reference."""
    q, row_scale = quantize_rows(rows)
    torch.mul(integer_product(q, weight, scale), row_scale, out=out)
    if two_steps:
        rest, rest_scale = quantize_rows(torch.addcmul(rows, q, row_scale, value=-1))
        out.addcmul_(integer_product(rest, weight, scale), rest_scale)
