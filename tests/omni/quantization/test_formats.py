"""Int8 and int4 weights: errors are bounded, rows are independent, kernels read our bytes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omni.quantization import formats
from omni.quantization.formats import (
    WEIGHT_ONLY_ROWS,
    dequantize_int4,
    dequantize_int8,
    integer_product,
    kernel_block,
    linear_int4,
    linear_int8,
    pack_int4,
    quantize_int4,
    quantize_int8,
    quantize_rows,
    unpack_int4,
)

seeds = st.integers(0, 2**16)
outputs = st.integers(1, 130)
group_counts = st.integers(1, 5)
groups = st.sampled_from([32, 64, 128])
laws = settings(max_examples=25, deadline=None)


def weight_of(n: int, k: int, seed: int) -> torch.Tensor:
    """Rows of very different size, some of zeros: a scale per row is needed."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.randint(-3, 3, (n, 1), generator=generator).float()
    return torch.randn(n, k, generator=generator) * 10**size * (size > -3)


@laws
@given(n=outputs, k=st.integers(1, 80), seed=seeds)
def test_int8_weights_are_off_by_at_most_half_a_step(n, k, seed):
    weight = weight_of(n, k, seed)
    q, scale = quantize_int8(weight)
    error = (dequantize_int8(q, scale) - weight).abs()
    # The scale is in bfloat16, so the largest value may be cut by half a step more (2**-9 of 127).
    assert (error <= 0.76 * scale.float()[:, None]).all()


@laws
@given(n=outputs, count=group_counts, group=groups, seed=seeds)
def test_int4_weights_are_off_by_at_most_a_step_in_the_mean_of_each_group(n, count, group, seed):
    weight = weight_of(n, count * group, seed)
    packed, scale, scales = quantize_int4(weight, group)
    read = dequantize_int4(packed, scale, scales)[:n]
    error = (read - weight).unflatten(1, (-1, group)).square().mean(-1).sqrt()
    largest = weight.unflatten(1, (-1, group)).abs().amax(-1)
    # The step that holds the largest value is at most one multiplier more than an eighth of it.
    assert (error <= 1.01 * (largest / 8 + scale[:n, None])).all()
    assert (dequantize_int4(packed, scale, scales)[n:] == 0).all()


@laws
@given(n=outputs, count=group_counts, seed=seeds)
def test_unpacked_int4_weights_fit_int8_and_are_multiples_of_their_multiplier(n, count, seed):
    packed, scale, scales = quantize_int4(weight_of(n, count * 32, seed), 32)
    whole = unpack_int4(packed, scale, scales)
    multiplier = (scales[..., 0].float() / scale).round().repeat_interleave(32, dim=0)
    assert multiplier.abs().max() <= 15
    assert multiplier.abs().min() >= 1
    assert (whole.float() % multiplier == 0).all()


def test_the_int4_kernel_reads_our_bytes():
    q = torch.randint(-8, 8, (192, 96))
    theirs = torch._convert_weight_to_int4pack_for_cpu((q + 8).int(), 1)
    ours = formats._as_blocks(pack_int4(q), kernel_block())
    assert torch.equal(theirs.flatten(), ours.flatten())


def test_blocks_of_32_outputs_hold_the_same_values_in_the_order_of_avx2():
    q = torch.randint(-8, 8, (128, 32))
    packed = formats._as_blocks(pack_int4(q), 32)
    read = torch.cat([packed & 15, packed >> 4], dim=-1).transpose(1, 2).flatten(0, 1)
    assert torch.equal(read.int() - 8, q.int())


@pytest.mark.parametrize("size", [16, 48, 100])
def test_unknown_group_sizes_are_refused_with_the_numbers(size):
    with pytest.raises(ValueError, match=rf"group size {size} for 96 inputs.*32, 64, 128"):
        quantize_int4(torch.zeros(4, 96), size)


@laws
@given(rows=st.integers(1, 40), k=st.integers(1, 100), seed=seeds)
def test_activations_are_off_by_at_most_half_a_step_of_their_row(rows, k, seed):
    x = weight_of(rows, k, seed)
    q, scale = quantize_rows(x)
    assert ((q.float() * scale - x).abs() <= 0.51 * scale).all()


@laws
@given(rows=st.integers(1, 40), n=outputs, k=st.integers(1, 96), seed=seeds)
def test_integer_products_are_exact(rows, n, k, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-127, 128, (rows, k), generator=generator, dtype=torch.int8)
    w = torch.randint(-127, 128, (n, k), generator=generator, dtype=torch.int8)
    expected = x.int() @ w.int().t()
    assert torch.equal(integer_product(x, w.t(), torch.ones(n)), expected.float())


def multiplied(bits: int, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Product by the fast path and by the slow reference."""
    if bits == 8:
        packed = quantize_int8(weight)
        return linear_int8(x, *packed), x @ dequantize_int8(*packed).t()
    packed = quantize_int4(weight, 32)
    n = len(weight)
    return linear_int4(x, *packed)[:, :n], x @ dequantize_int4(*packed)[:n].t()


@pytest.mark.parametrize("bits", [8, 4])
@laws
@given(rows=st.integers(1, 60), n=outputs, count=group_counts, seed=seeds)
def test_fast_products_agree_with_the_dequantised_reference(bits, rows, n, count, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 32 * count, generator=generator)
    weight = torch.randn(n, 32 * count, generator=generator)
    fast, slow = multiplied(bits, x, weight)
    # Rounding activations: 2**-9 of each value in bfloat16, 1 / 254 of the largest one in int8;
    # the errors of all inputs add up as random steps. Measured worst: 0.015.
    bound = 0.03 * x.norm(dim=1, keepdim=True) * weight.norm(dim=1)
    assert ((fast - slow).abs() <= bound + 1e-6).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_a_row_of_many_is_what_it_is_among_others(bits):
    x, weight = torch.randn(100, 64), torch.randn(70, 64)
    first = WEIGHT_ONLY_ROWS[bits] + 1
    alone, _ = multiplied(bits, x[:first], weight)
    among, _ = multiplied(bits, x, weight)
    assert torch.equal(alone, among[:first])


def test_two_steps_are_exact_where_one_value_drowns_the_others():
    x, weight = torch.randn(50, 64), torch.randn(48, 64)
    x[:, 0] = 100.0
    packed = quantize_int8(weight)
    exact = x @ dequantize_int8(*packed).t()
    once = (linear_int8(x, *packed) - exact).abs().mean()
    twice = (linear_int8(x, *packed, two_steps=True) - exact).abs().mean()
    assert twice < once / 50


@pytest.mark.parametrize("k", [16, 20])
@pytest.mark.parametrize("offset", [0, 1, 8])
def test_weights_that_the_kernel_would_read_wrongly_take_the_other_path(k, offset):
    # torch's kernel ends the process at odd addresses, and adds garbage where k % 16 != 0.
    weight, x = torch.randn(64, k), torch.randn(4, k)
    q, scale = quantize_int8(weight)
    moved = torch.empty(q.numel() + 64, dtype=torch.int8)[offset : offset + q.numel()]
    moved.copy_(q.flatten())
    product = linear_int8(x, moved.view_as(q), scale)
    exact = x @ dequantize_int8(q, scale).t()
    assert (product - exact).abs().max() < 0.03 * exact.abs().max()
