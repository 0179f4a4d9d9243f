// Small functions of single numbers, written so that compilers turn loops over them into vectors.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

// The float32 number whose upper half these 16 bits are.
inline float from_bfloat16(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

// e^x within 2e-7 of its value: 2^n e^r with n whole and |r| <= ln(2) / 2.
inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
    const float n = std::nearbyint(x * 1.44269504f);
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return p * power;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

// log(1 + e^x), as PyTorch computes it.
inline float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

enum Activation : int64_t { RELU_SQUARED, SILU, GELU, RELU };

// A number that is none stays none.
inline void activate(int64_t activation, float* x, int64_t size) {
    switch (activation) {
        case RELU_SQUARED:
#pragma omp simd
            for (int64_t i = 0; i < size; i++) x[i] = x[i] <= 0 ? 0.0f : x[i] * x[i];
            break;
        case SILU:
#pragma omp simd
            for (int64_t i = 0; i < size; i++) x[i] *= sigmoid(x[i]);
            break;
        case GELU:
            for (int64_t i = 0; i < size; i++)
                x[i] *= 0.5f * (1.0f + std::erf(x[i] * 0.70710678f));
            break;
        case RELU:
#pragma omp simd
            for (int64_t i = 0; i < size; i++) x[i] = x[i] <= 0 ? 0.0f : x[i];
            break;
    }
}

inline float dot(const float* a, const float* b, int64_t size) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < size; i++) sum += a[i] * b[i];
    return sum;
}

// y = x / sqrt(mean(x^2) + eps) * weight
inline void rms_norm(const float* x, const float* weight, int64_t size, float eps, float* y) {
    const float scale = 1.0f / std::sqrt(dot(x, x, size) / static_cast<float>(size) + eps);
#pragma omp simd
    for (int64_t i = 0; i < size; i++) y[i] = x[i] * scale * weight[i];
}
