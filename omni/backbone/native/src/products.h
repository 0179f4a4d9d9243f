// Products of a matrix (N outputs, K inputs) with one row, from weights as they lie in memory.
//
//     FLOAT_ROWS     float (N, K)
//     FLOAT_COLUMNS  float (K, N): the numbers of a column side by side
//     INT8           int8 (N, K), bfloat16 scale (N): w[n, k] = scale[n] q[n, k]
//     INT4           bytes (N / 64, K, 32), bfloat16 pairs (K / G, N, 2), N a multiple of 64:
//                    w[n, k] = pair[k / G, n][0] (q[n, k] - 8); byte j of a block holds the
//                    outputs j (lower half) and j + 32 (upper half)
//
// Where the processor multiplies integers (AVX-512 VNNI), int8 and int4 weights meet activations
// rounded to 16 bits of the row's largest one, and sums are exact. Elsewhere activations stay float.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "numbers.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#define HAS_INTEGER_PRODUCTS 1
#if defined(__AVX512VBMI__)
#define HAS_BYTE_SHUFFLES 1
#endif
#endif

enum Format : int64_t { NONE, FLOAT_ROWS, FLOAT_COLUMNS, INT8, INT4 };

constexpr int64_t BLOCK = 64;      // outputs of a packed int4 block
constexpr int64_t SUM_STEP = 32;   // inputs whose integers are summed beforehand for int4

struct Matrix {  // mirrored by table.py
    int64_t format, num_outputs, num_inputs, group_size;
    const void* weight;
    const uint16_t* scale;  // of int8: bfloat16 (N); of int4: bfloat16 (K / G, N, 2)
    const float* bias;      // (N) or null
    int64_t weight_stride;  // bytes from one matrix of a stack to the next
    int64_t scale_stride;
};

inline Matrix matrix_of(const Matrix& stack, int64_t index) {
    Matrix one = stack;
    one.weight = static_cast<const char*>(stack.weight) + index * stack.weight_stride;
    one.scale = reinterpret_cast<const uint16_t*>(
        reinterpret_cast<const char*>(stack.scale) + index * stack.scale_stride);
    return one;
}

// Outputs that are computed together; work is shared out in whole tiles.
inline int64_t tile_of(const Matrix& matrix) {
    if (matrix.format == INT4) return BLOCK;
    return matrix.format == FLOAT_COLUMNS ? 16 : 4;
}

inline int64_t num_tiles(const Matrix& matrix) {
    const int64_t tile = tile_of(matrix);
    return (matrix.num_outputs + tile - 1) / tile;
}

// The inputs of a product, and their integers once a matrix asks for them.
// whole = 256 high + low = round(x / unit)
class Row {
   public:
    const float* x = nullptr;
    int64_t size = 0;
    float unit = 1;
    std::vector<int16_t> whole;
    std::vector<int8_t> high, low;
    std::vector<int32_t> sums;  // of `SUM_STEP` integers each

    void set(const float* values, int64_t count) {
        x = values;
        size = count;
        has_integers = false;
    }

    void make_integers() {
        if (has_integers) return;
        has_integers = true;
        const int64_t padded = (size + SUM_STEP - 1) / SUM_STEP * SUM_STEP;
        if (static_cast<int64_t>(whole.size()) < padded) {
            whole.resize(padded);
            high.resize(padded);
            low.resize(padded);
            sums.resize(padded / SUM_STEP);
        }
        float largest = 1e-30f, nothing = 0;  // NaN if a number is not finite
#pragma omp simd reduction(max : largest) reduction(+ : nothing)
        for (int64_t i = 0; i < size; i++) {
            largest = std::max(largest, std::fabs(x[i]));
            nothing += x[i] * 0.0f;
        }
        unit = largest / 32512 + nothing;  // 127 * 256: what is left fits the lower byte
        const float inverse = 32512 / largest;
        for (int64_t i = 0; i < size; i++)
            whole[i] = static_cast<int16_t>(std::nearbyint(x[i] * inverse));
        std::fill(whole.begin() + size, whole.begin() + padded, int16_t{0});
        for (int64_t i = 0; i < padded; i++) {
            high[i] = static_cast<int8_t>((whole[i] + 128) >> 8);
            low[i] = static_cast<int8_t>(whole[i] & 255);
        }
        for (int64_t i = 0; i < padded / SUM_STEP; i++) {
            int32_t sum = 0;
            for (int64_t j = 0; j < SUM_STEP; j++) sum += whole[i * SUM_STEP + j];
            sums[i] = sum;
        }
    }

   private:
    bool has_integers = false;
};

// y[n] = factor (result + bias[n]), or y[n] += that.
struct Sink {
    float* y;
    float factor;
    bool adds;

    void put(const Matrix& matrix, int64_t n, float result) const {
        if (matrix.bias) result += matrix.bias[n];
        y[n] = adds ? y[n] + factor * result : factor * result;
    }
};

inline void multiply_float_rows(const Matrix& matrix, const float* x, int64_t begin, int64_t end,
                                const Sink& sink) {
    const int64_t size = matrix.num_inputs;
    const float* weight = static_cast<const float*>(matrix.weight);
    int64_t n = begin;
    for (; n + 4 <= end; n += 4) {
        const float *w0 = weight + n * size, *w1 = w0 + size, *w2 = w1 + size, *w3 = w2 + size;
        float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
        for (int64_t k = 0; k < size; k++) {
            s0 += w0[k] * x[k];
            s1 += w1[k] * x[k];
            s2 += w2[k] * x[k];
            s3 += w3[k] * x[k];
        }
        sink.put(matrix, n, s0);
        sink.put(matrix, n + 1, s1);
        sink.put(matrix, n + 2, s2);
        sink.put(matrix, n + 3, s3);
    }
    for (; n < end; n++) sink.put(matrix, n, dot(weight + n * size, x, size));
}

// Sums of columns, weighted with the row, a few hundred outputs at a time.
inline void multiply_float_columns(const Matrix& matrix, const float* x, int64_t begin, int64_t end,
                                   const Sink& sink) {
    constexpr int64_t MOST = 512;
    const int64_t stride = matrix.num_outputs;
    float sums[MOST];
    for (int64_t first = begin; first < end; first += MOST) {
        const int64_t count = std::min(end - first, MOST);
        const float* column = static_cast<const float*>(matrix.weight) + first;
        std::fill(sums, sums + count, 0.0f);
        int64_t k = 0;
        for (; k + 4 <= matrix.num_inputs; k += 4, column += 4 * stride) {
            const float *c1 = column + stride, *c2 = c1 + stride, *c3 = c2 + stride;
#pragma omp simd
            for (int64_t j = 0; j < count; j++)
                sums[j] += (x[k] * column[j] + x[k + 1] * c1[j]) +
                           (x[k + 2] * c2[j] + x[k + 3] * c3[j]);
        }
        for (; k < matrix.num_inputs; k++, column += stride)
            for (int64_t j = 0; j < count; j++) sums[j] += x[k] * column[j];
        for (int64_t j = 0; j < count; j++) sink.put(matrix, first + j, sums[j]);
    }
}

#ifdef HAS_INTEGER_PRODUCTS

// Products of four rows of int8, or of one, with 16-bit activations. Of 8,192 products of 15 and
// 7 bits each of the 16 numbers of a register sums 512, which fit 32 bits; all of them may not.
template <int ROWS>
inline void sum_int8(const int8_t* weight, int64_t size, const int16_t* x, float* sums) {
    constexpr int64_t STRETCH = 8192;
    for (int r = 0; r < ROWS; r++) sums[r] = 0;
    for (int64_t first = 0; first < size; first += STRETCH) {
        const int64_t last = std::min(first + STRETCH, size);
        __m512i sum[ROWS];
        for (int r = 0; r < ROWS; r++) sum[r] = _mm512_setzero_si512();
        int64_t k = first;
        for (; k + 32 <= last; k += 32) {
            const __m512i row = _mm512_loadu_si512(x + k);
            for (int r = 0; r < ROWS; r++) {
                const void* place = weight + r * size + k;
                const __m512i w = _mm512_cvtepi8_epi16(
                    _mm256_loadu_si256(static_cast<const __m256i*>(place)));
                sum[r] = _mm512_dpwssd_epi32(sum[r], row, w);
            }
        }
        if (k < last) {
            const __mmask32 rest = (1u << (last - k)) - 1;
            const __m512i row = _mm512_loadu_si512(x + k);
            for (int r = 0; r < ROWS; r++) {
                const __m512i w =
                    _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(rest, weight + r * size + k));
                sum[r] = _mm512_dpwssd_epi32(sum[r], row, w);
            }
        }
        for (int r = 0; r < ROWS; r++)
            sums[r] += _mm512_reduce_add_ps(_mm512_cvtepi32_ps(sum[r]));
    }
}

inline void multiply_int8(const Matrix& matrix, Row& row, int64_t begin, int64_t end,
                          const Sink& sink) {
    row.make_integers();
    const int8_t* weight = static_cast<const int8_t*>(matrix.weight);
    const int64_t size = matrix.num_inputs;
    float sums[4];
    for (int64_t n = begin; n < end;) {
        const bool is_whole = n + 4 <= end;
        if (is_whole)
            sum_int8<4>(weight + n * size, size, row.whole.data(), sums);
        else
            sum_int8<1>(weight + n * size, size, row.whole.data(), sums);
        for (int r = 0; r < (is_whole ? 4 : 1); r++, n++)
            sink.put(matrix, n, sums[r] * row.unit * from_bfloat16(matrix.scale[n]));
    }
}

#else

inline void multiply_int8(const Matrix& matrix, Row& row, int64_t begin, int64_t end,
                          const Sink& sink) {
    const int8_t* weight = static_cast<const int8_t*>(matrix.weight);
    for (int64_t n = begin; n < end; n++) {
        const int8_t* w = weight + n * matrix.num_inputs;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t k = 0; k < matrix.num_inputs; k++) sum += row.x[k] * static_cast<float>(w[k]);
        sink.put(matrix, n, sum * from_bfloat16(matrix.scale[n]));
    }
}

#endif

#ifdef HAS_BYTE_SHUFFLES

// Adds 16 outputs' share of one group: (256 high + low - 8 sum) times the group's scale.
inline __m512 add_group(__m512 total, __m512i high, __m512i low, __m512i offset,
                        const uint16_t* pairs) {
    const __m512i whole =
        _mm512_sub_epi32(_mm512_add_epi32(_mm512_slli_epi32(high, 8), low), offset);
    const __m512i scale = _mm512_slli_epi32(_mm512_loadu_si512(pairs), 16);  // first of each pair
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), _mm512_castsi512_ps(scale), total);
}

// The sums of one block. Four inputs of all outputs are 128 bytes: two shuffles bring the four
// bytes of an output together, as the instruction that multiplies bytes wants them.
inline void sum_int4(const uint8_t* weight, const uint16_t* pairs, int64_t stride,
                     const Matrix& matrix, const Row& row, float* sums) {
    alignas(64) uint8_t order[128];
    for (int i = 0; i < 128; i++) order[i] = static_cast<uint8_t>(i % 4 * 32 + i / 4);
    const __m512i first = _mm512_load_si512(order), second = _mm512_load_si512(order + 64);
    const __m512i nibble = _mm512_set1_epi8(15), zero = _mm512_setzero_si512();
    __m512 total[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                       _mm512_setzero_ps()};
    for (int64_t start = 0; start < matrix.num_inputs; start += matrix.group_size, pairs += stride) {
        __m512i high[4] = {zero, zero, zero, zero}, low[4] = {zero, zero, zero, zero};
        int32_t sum = 0;
        for (int64_t k = start; k < start + matrix.group_size; k += 4, weight += 128) {
            const __m512i a = _mm512_loadu_si512(weight), b = _mm512_loadu_si512(weight + 64);
            const __m512i c = _mm512_permutex2var_epi8(a, first, b);
            const __m512i d = _mm512_permutex2var_epi8(a, second, b);
            const __m512i q[4] = {_mm512_and_si512(c, nibble), _mm512_and_si512(d, nibble),
                                  _mm512_and_si512(_mm512_srli_epi16(c, 4), nibble),
                                  _mm512_and_si512(_mm512_srli_epi16(d, 4), nibble)};
            int32_t four;
            std::memcpy(&four, row.high.data() + k, 4);
            const __m512i x_high = _mm512_set1_epi32(four);
            std::memcpy(&four, row.low.data() + k, 4);
            const __m512i x_low = _mm512_set1_epi32(four);
            for (int i = 0; i < 4; i++) {
                high[i] = _mm512_dpbusd_epi32(high[i], q[i], x_high);
                low[i] = _mm512_dpbusd_epi32(low[i], q[i], x_low);
            }
        }
        for (int64_t k = start; k < start + matrix.group_size; k += SUM_STEP)
            sum += row.sums[k / SUM_STEP];
        const __m512i offset = _mm512_set1_epi32(8 * sum);
        for (int i = 0; i < 4; i++)
            total[i] = add_group(total[i], high[i], low[i], offset, pairs + 32 * i);
    }
    for (int i = 0; i < 4; i++)
        _mm512_storeu_ps(sums + 16 * i, _mm512_mul_ps(total[i], _mm512_set1_ps(row.unit)));
}

#else

inline void sum_int4(const uint8_t* weight, const uint16_t* pairs, int64_t stride,
                     const Matrix& matrix, const Row& row, float* sums) {
    std::fill(sums, sums + BLOCK, 0.0f);
    for (int64_t start = 0; start < matrix.num_inputs; start += matrix.group_size, pairs += stride) {
        float group[BLOCK] = {};
        for (int64_t k = start; k < start + matrix.group_size; k++, weight += BLOCK / 2) {
            const float x = row.x[k];
#pragma omp simd
            for (int64_t j = 0; j < BLOCK / 2; j++) {
                group[j] += x * static_cast<float>((weight[j] & 15) - 8);
                group[j + BLOCK / 2] += x * static_cast<float>((weight[j] >> 4) - 8);
            }
        }
        for (int64_t j = 0; j < BLOCK; j++) sums[j] += group[j] * from_bfloat16(pairs[2 * j]);
    }
}

#endif

inline void multiply_int4(const Matrix& matrix, Row& row, int64_t begin, int64_t end,
                          const Sink& sink) {
#ifdef HAS_BYTE_SHUFFLES
    row.make_integers();
#endif
    const int64_t padded = (matrix.num_outputs + BLOCK - 1) / BLOCK * BLOCK;
    float sums[BLOCK];
    for (int64_t n = begin; n < end; n += BLOCK) {
        const uint8_t* block =
            static_cast<const uint8_t*>(matrix.weight) + n / 2 * matrix.num_inputs;
        sum_int4(block, matrix.scale + 2 * n, 2 * padded, matrix, row, sums);
        for (int64_t j = 0; j < std::min(BLOCK, end - n); j++) sink.put(matrix, n + j, sums[j]);
    }
}

// The outputs of the tiles from `first` to `last`, the latter excluded.
inline void multiply(const Matrix& matrix, Row& row, int64_t first, int64_t last,
                     const Sink& sink) {
    const int64_t tile = tile_of(matrix);
    const int64_t begin = first * tile, end = std::min(last * tile, matrix.num_outputs);
    if (begin >= end) return;
    switch (matrix.format) {
        case FLOAT_ROWS: return multiply_float_rows(matrix, row.x, begin, end, sink);
        case FLOAT_COLUMNS: return multiply_float_columns(matrix, row.x, begin, end, sink);
        case INT8: return multiply_int8(matrix, row, begin, end, sink);
        case INT4: return multiply_int4(matrix, row, begin, end, sink);
    }
}
