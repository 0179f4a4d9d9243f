"""Which number format multiplies faster here: it differs between processors by a factor of two."""

import time
from functools import cache

import torch
from torch.nn import functional as F

ROWS, WIDTH, OUTPUTS = 4096, 192, 768  # a product of the vision tower
REPEATS = 5


@cache
def bfloat16_is_faster() -> bool:
    """Say whether this machine multiplies matrices faster in bfloat16 than in float32.

    Some processors have units for it, some only the instructions, at half of float32's rate.
    Measured once a process, in some 30 ms: the best of five products of each, in turns.
    """
    products = {
        dtype: (torch.ones(ROWS, WIDTH, dtype=dtype), torch.ones(OUTPUTS, WIDTH, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    }
    best = dict.fromkeys(products, float("inf"))
    for _ in range(REPEATS):
        for dtype, (rows, weight) in products.items():
            started = time.perf_counter()
            F.linear(rows, weight)
            best[dtype] = min(best[dtype], time.perf_counter() - started)
    return best[torch.bfloat16] < best[torch.float32]
