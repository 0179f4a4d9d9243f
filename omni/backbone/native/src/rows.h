// What stands before and after a product of int8 rows: rounding, and scaling of the sums.
// Formulas are those of `omni.quantization.formats`; numbers come from memory once.
#pragma once

#include <algorithm>

#include "numbers.h"

// q = round(x 127 / largest); returns the unit that the integers count, NaN if a number is not
// finite.
inline float round_row(const float* x, int64_t size, int8_t* q) {
    float largest = 1e-30f, nothing = 0;
#pragma omp simd reduction(max : largest) reduction(+ : nothing)
    for (int64_t k = 0; k < size; k++) {
        largest = std::max(largest, std::fabs(x[k]));
        nothing += x[k] * 0.0f;
    }
    const float inverse = 1 / largest * 127;  // as PyTorch divides a number by a tensor
#pragma omp simd
    for (int64_t k = 0; k < size; k++)
        q[k] = static_cast<int8_t>(static_cast<int32_t>(std::nearbyint(x[k] * inverse)));
    return largest / 127 + nothing;
}

// y = sums scale unit, or y += that.
inline void scale_row(const int32_t* sums, const float* scale, float unit, int64_t size, bool adds,
                      float* y) {
    if (adds) {
#pragma omp simd
        for (int64_t n = 0; n < size; n++) y[n] += static_cast<float>(sums[n]) * scale[n] * unit;
    } else {
#pragma omp simd
        for (int64_t n = 0; n < size; n++) y[n] = static_cast<float>(sums[n]) * scale[n] * unit;
    }
}
