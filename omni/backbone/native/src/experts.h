// Experts with int8 weights for many rows: prefill.
//
// Rows are rounded to 8 bits of their largest number, products are exact integers, and what lies
// between the two layers of an expert stays in the cache. Formulas and roundings are those of
// `QuantizedExperts.sorted_by_expert`, which is the reference.
//
// The instruction multiplies unsigned with signed bytes: activations are stored with 128 added,
// and 128 times the sum of the weights is taken off again.
#pragma once

#include "layers.h"
#include "rows.h"

struct ExpertRows {         // mirrored by table.py
    const int64_t* ends;    // (experts): where each expert's pairs end, in order of the experts
    const int64_t* tokens;  // (pairs)
    const float* shares;    // (pairs): what each result counts
    int64_t num_experts, num_tokens, activation;
    int64_t few;  // rows of an expert, at most, that are rounded to 16 bits instead
};

#ifdef HAS_INTEGER_PRODUCTS

constexpr int TILE = 4;             // rows and outputs that are multiplied together
constexpr int64_t PANEL = 64;       // outputs whose weights stay in the cache for all rows
constexpr int64_t STEP = 64;        // bytes of a register
constexpr uint8_t OFFSET = 128;

// Rows of bytes, each with the unit that its integers count.
struct ByteRows {
    int64_t size = 0;
    std::vector<uint8_t> bytes;
    std::vector<float> units;

    void make_room(int64_t rows, int64_t width) {
        size = width;
        bytes.resize(rows * width);
        units.resize(rows);
    }
    const uint8_t* row(int64_t index) const { return bytes.data() + index * size; }

    void round(int64_t index, const float* x) {
        uint8_t* to = bytes.data() + index * size;
        units[index] = round_row(x, size, reinterpret_cast<int8_t*>(to));
        for (int64_t k = 0; k < size; k++) to[k] ^= OFFSET;  // adds 128
    }
};

// The sums of four registers of 16 numbers each.
inline __m128i sums_of(__m512i a, __m512i b, __m512i c, __m512i d) {
    const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    const __m512i all =
        _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i half =
        _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

// sum += byte by byte products, in place: compilers copy the sums when they write it themselves.
inline void add_products(__m512i& sum, __m512i unsigned_bytes, __m512i signed_bytes) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_bytes), "v"(signed_bytes));
}

// Products of four rows with four outputs: sixteen sums and five factors stay in registers. While
// it multiplies, the next outputs' weights are fetched.
__attribute__((noinline)) inline void multiply_tile(const uint8_t* const* x, const int8_t* const* w, int64_t size,
                          __m128i* sums) {
    const uint8_t *x0 = x[0], *x1 = x[1], *x2 = x[2], *x3 = x[3];
    const int8_t *w0 = w[0], *w1 = w[1], *w2 = w[2], *w3 = w[3];
    const __m512i zero = _mm512_setzero_si512();
    __m512i s00 = zero, s01 = zero, s02 = zero, s03 = zero, s10 = zero, s11 = zero, s12 = zero,
            s13 = zero, s20 = zero, s21 = zero, s22 = zero, s23 = zero, s30 = zero, s31 = zero,
            s32 = zero, s33 = zero;
    const auto fetch = [size](const int8_t* place) {
        _mm_prefetch(reinterpret_cast<const char*>(place + TILE * size), _MM_HINT_T0);
    };
#define ADD_STEP(LOAD)                                                     \
    {                                                                      \
        const __m512i a = LOAD(w0), b = LOAD(w1), c = LOAD(w2), d = LOAD(w3); \
        __m512i row = LOAD(x0);                                            \
        add_products(s00, row, a), add_products(s01, row, b);              \
        add_products(s02, row, c), add_products(s03, row, d);              \
        row = LOAD(x1);                                                    \
        add_products(s10, row, a), add_products(s11, row, b);              \
        add_products(s12, row, c), add_products(s13, row, d);              \
        row = LOAD(x2);                                                    \
        add_products(s20, row, a), add_products(s21, row, b);              \
        add_products(s22, row, c), add_products(s23, row, d);              \
        row = LOAD(x3);                                                    \
        add_products(s30, row, a), add_products(s31, row, b);              \
        add_products(s32, row, c), add_products(s33, row, d);              \
    }
    int64_t k = 0;
    for (; k + STEP <= size; k += STEP) {
        fetch(w0 + k), fetch(w1 + k), fetch(w2 + k), fetch(w3 + k);
#define WHOLE(place) _mm512_loadu_si512(place + k)
        ADD_STEP(WHOLE)
    }
    if (k < size) {
        const __mmask64 rest = (__mmask64{1} << (size - k)) - 1;
#define REST(place) _mm512_maskz_loadu_epi8(rest, place + k)
        ADD_STEP(REST)
    }
#undef REST
#undef WHOLE
#undef ADD_STEP
    sums[0] = sums_of(s00, s01, s02, s03);
    sums[1] = sums_of(s10, s11, s12, s13);
    sums[2] = sums_of(s20, s21, s22, s23);
    sums[3] = sums_of(s30, s31, s32, s33);
}

// 128 times the sum of the weights of four outputs.
inline __m128i offset_of(const int8_t* const* w, int64_t size) {
    const __m512i ones = _mm512_set1_epi8(1);
    __m512i sum[TILE] = {};
    for (int64_t k = 0; k < size; k += STEP) {
        const int64_t left = size - k;
        const __mmask64 mask = left < STEP ? (__mmask64{1} << left) - 1 : ~__mmask64{0};
        for (int j = 0; j < TILE; j++)
            sum[j] = _mm512_dpbusd_epi32(sum[j], ones, _mm512_maskz_loadu_epi8(mask, w[j] + k));
    }
    return _mm_slli_epi32(sums_of(sum[0], sum[1], sum[2], sum[3]), 7);
}

// Outputs `begin` to `end` of some rows: calls put(row, output, four results, how many count).
template <typename RowOf, typename Put>
inline void multiply_rows(const Matrix& matrix, const ByteRows& rows, int64_t num_rows,
                          const RowOf& row_of, int64_t begin, int64_t end, const Put& put) {
    const int8_t* weight = static_cast<const int8_t*>(matrix.weight);
    const int64_t size = matrix.num_inputs;
    const int8_t* w[PANEL / TILE][TILE];
    __m128i offset[PANEL / TILE];
    __m128 scale[PANEL / TILE];
    for (int64_t first = begin; first < end; first += PANEL) {
        const int64_t last = std::min(first + PANEL, end), tiles = (last - first + TILE - 1) / TILE;
        for (int64_t t = 0; t < tiles; t++) {
            float four[TILE];
            for (int j = 0; j < TILE; j++) {  // those behind the last are computed twice
                const int64_t n = std::min(first + t * TILE + j, last - 1);
                w[t][j] = weight + n * size;
                four[j] = from_bfloat16(matrix.scale[n]);
            }
            offset[t] = offset_of(w[t], size);
            scale[t] = _mm_loadu_ps(four);
        }
        for (int64_t m = 0; m < num_rows; m += TILE) {
            const uint8_t* x[TILE];
            float unit[TILE];
            for (int i = 0; i < TILE; i++) {
                const int64_t row = row_of(std::min(m + i, num_rows - 1));
                x[i] = rows.row(row);
                unit[i] = rows.units[row];
            }
            const int64_t count = std::min<int64_t>(TILE, num_rows - m);
            for (int64_t t = 0; t < tiles; t++) {
                __m128i sums[TILE];
                multiply_tile(x, w[t], size, sums);
                const int64_t n = first + t * TILE, outputs = std::min<int64_t>(TILE, last - n);
                for (int64_t i = 0; i < count; i++) {
                    const __m128 whole = _mm_cvtepi32_ps(_mm_sub_epi32(sums[i], offset[t]));
                    const __m128 result =
                        _mm_mul_ps(_mm_mul_ps(whole, scale[t]), _mm_set1_ps(unit[i]));
                    put(m + i, n, result, outputs);
                }
            }
        }
    }
}

// What the threads share while they run the experts.
struct Team {
    const ExpertRows& routed;
    const float* x;
    float* total;               // (tokens, outputs)
    ByteRows inputs, middle;
    std::vector<float> hidden;  // (rows of an expert, width)
};

// Results of an expert's first layer, this thread's share of them.
inline void run_up(Member& me, const Matrix& up, Team& team, const int64_t* tokens, int64_t count) {
    const int64_t width = up.num_outputs;
    if (count <= team.routed.few) {  // in 16 bits, as a single token
        for (int64_t row = 0; row < count; row++) {
            me.row.set(team.x + tokens[row] * up.num_inputs, up.num_inputs);
            me.product(up, {team.hidden.data() + row * width, 1, false});
        }
        return;
    }
    const auto [begin, end] = me.share(num_tiles(up));
    const auto token_of = [&](int64_t row) { return tokens[row]; };
    const auto keep = [&](int64_t row, int64_t n, __m128 result, int64_t most) {
        float* place = team.hidden.data() + row * width + n;
        alignas(16) float four[TILE];
        _mm_store_ps(four, result);
        for (int64_t j = 0; j < most; j++) place[j] = four[j];
    };
    multiply_rows(up, team.inputs, count, token_of, begin * TILE, std::min(end * TILE, width),
                  keep);
}

// Adds the results of its second layer to the tokens, weighted.
inline void run_down(Member& me, const Matrix& down, Team& team, const int64_t* tokens,
                     const float* shares, int64_t count) {
    const int64_t outputs = down.num_outputs;
    if (count <= team.routed.few) {
        for (int64_t row = 0; row < count; row++)
            me.add_product(down, team.hidden.data() + row * down.num_inputs,
                           team.total + tokens[row] * outputs, shares[row]);
        return;
    }
    const auto [begin, end] = me.share(num_tiles(down));
    const auto same = [](int64_t row) { return row; };
    const auto add = [&](int64_t row, int64_t n, __m128 result, int64_t most) {
        float* place = team.total + tokens[row] * outputs + n;
        alignas(16) float four[TILE];
        _mm_store_ps(four, _mm_mul_ps(result, _mm_set1_ps(shares[row])));
        for (int64_t j = 0; j < most; j++) place[j] += four[j];
    };
    multiply_rows(down, team.middle, count, same, begin * TILE, std::min(end * TILE, outputs),
                  add);
}

// total[token] += share * down(activation(up(x[token]))) over the pairs of each expert in turn.
// Threads share the outputs, so that no two of them write to one number.
inline void run_experts(Member& me, const Matrix& up, const Matrix& down, Team& team) {
    const ExpertRows& routed = team.routed;
    const int64_t width = up.num_outputs;
    const auto [first, last] = me.share(routed.num_tokens);
    for (int64_t t = first; t < last; t++) team.inputs.round(t, team.x + t * up.num_inputs);
    std::fill(team.total + first * down.num_outputs, team.total + last * down.num_outputs, 0.0f);
    me.wait();
    for (int64_t e = 0, start = 0; e < routed.num_experts; start = routed.ends[e++]) {
        const int64_t count = routed.ends[e] - start;
        if (count == 0) continue;
        run_up(me, matrix_of(up, e), team, routed.tokens + start, count);
        me.wait();
        const auto [from, to] = me.share(count);
        for (int64_t row = from; row < to; row++) {
            float* hidden = team.hidden.data() + row * width;
            activate(routed.activation, hidden, width);
            if (count > routed.few) team.middle.round(row, hidden);
        }
        me.wait();
        const auto* shares = routed.shares + start;
        run_down(me, matrix_of(down, e), team, routed.tokens + start, shares, count);
        if (count <= team.routed.few) me.wait();  // `hidden` is read until then
    }
}

#endif
