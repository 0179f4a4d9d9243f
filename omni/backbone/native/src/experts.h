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

constexpr int TILE = 4, ROWS = 6;   // outputs and rows that are multiplied together
constexpr int64_t PANEL = 64;       // outputs whose weights stay in the cache for all rows
constexpr int64_t STEP = 64;        // bytes of a register
constexpr uint8_t OFFSET = 128;

// Rows of bytes, each with the unit that its integers count. They begin where registers do: a load
// that crosses a line of the cache takes twice as long.
struct ByteRows {
    struct alignas(STEP) Line {
        uint8_t bytes[STEP];
    };
    int64_t size = 0, lines = 0;  // of a row
    std::vector<Line> all;
    std::vector<float> units;

    void make_room(int64_t rows, int64_t width) {
        size = width;
        lines = (width + STEP - 1) / STEP;
        all.resize(rows * lines);
        units.resize(rows);
    }
    const uint8_t* row(int64_t index) const { return all[index * lines].bytes; }

    void round(int64_t index, const float* x) {
        uint8_t* to = all[index * lines].bytes;
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

// Products of six rows with four outputs: all sums and five factors stay in registers.
__attribute__((noinline)) inline void multiply_tile(const uint8_t* const* x,
                                                    const int8_t* const* w, int64_t size,
                                                    __m128i* sums) {
    __m512i sum[ROWS][TILE];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
        for (int j = 0; j < TILE; j++) sum[i][j] = _mm512_setzero_si512();
    const auto add_step = [&](const auto& load, int64_t k) __attribute__((always_inline)) {
        __m512i weights[TILE];
#pragma GCC unroll 4
        for (int j = 0; j < TILE; j++) weights[j] = load(w[j] + k);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) {
            const __m512i row = load(x[i] + k);
#pragma GCC unroll 4
            for (int j = 0; j < TILE; j++) add_products(sum[i][j], row, weights[j]);
        }
    };
    int64_t k = 0;
    for (; k + STEP <= size; k += STEP)
        add_step([](const void* place) { return _mm512_loadu_si512(place); }, k);
    if (k < size) {
        const __mmask64 rest = (__mmask64{1} << (size - k)) - 1;
        add_step([rest](const void* place) { return _mm512_maskz_loadu_epi8(rest, place); }, k);
    }
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
        sums[i] = sums_of(sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
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

// Memory that will be needed soon.
struct Bytes {
    const char *begin = nullptr, *end = nullptr;

    Bytes() = default;
    template <typename Number>
    Bytes(const Number* first, int64_t count)
        : begin(reinterpret_cast<const char*>(first)),
          end(reinterpret_cast<const char*>(first + count)) {}

    // Fetches some of it into the cache; the rest is left.
    void fetch(int64_t most) {
        for (const char* until = std::min(begin + most, end); begin < until; begin += STEP)
            _mm_prefetch(begin, _MM_HINT_T0);
    }
};

// The weights of an expert's outputs `first` to `end`, a panel of them at most.
inline Bytes panel_of(const Matrix& matrix, int64_t first, int64_t end) {
    const int64_t count = std::max<int64_t>(std::min(PANEL, end - first), 0);
    return {static_cast<const int8_t*>(matrix.weight) + first * matrix.num_inputs,
            count * matrix.num_inputs};
}

// Outputs `begin` to `end` of some rows: calls put(place_of(row, output), row, four results, how
// many count). While a panel is multiplied, the next one's weights are fetched; behind the last
// these are `then`. Reading an expert takes as long as the products of some 35 rows: with more,
// the weights come at no cost.
template <typename RowOf, typename Place, typename Put>
inline void multiply_rows(const Matrix& matrix, const ByteRows& rows, int64_t num_rows,
                          const RowOf& row_of, int64_t begin, int64_t end, Bytes then,
                          const Place& place_of, const Put& put) {
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
        Bytes later = last < end ? panel_of(matrix, last, end) : then;
        const int64_t products = tiles * ((num_rows + ROWS - 1) / ROWS);
        const int64_t at_once = ((later.end - later.begin) / products / STEP + 1) * STEP;
        for (int64_t m = 0; m < num_rows; m += ROWS) {
            const uint8_t* x[ROWS];
            float unit[ROWS];
            for (int i = 0; i < ROWS; i++) {
                const int64_t row = row_of(std::min(m + i, num_rows - 1));
                x[i] = rows.row(row);
                unit[i] = rows.units[row];
            }
            const int64_t count = std::min<int64_t>(ROWS, num_rows - m);
            for (int64_t i = 0; i < count; i++)
                Bytes(place_of(m + i, first), last - first).fetch(PANEL * sizeof(float));
            for (int64_t t = 0; t < tiles; t++) {
                __m128i sums[ROWS];
                later.fetch(at_once);
                multiply_tile(x, w[t], size, sums);
                const int64_t n = first + t * TILE, outputs = std::min<int64_t>(TILE, last - n);
                for (int64_t i = 0; i < count; i++) {
                    const __m128 whole = _mm_cvtepi32_ps(_mm_sub_epi32(sums[i], offset[t]));
                    const __m128 result =
                        _mm_mul_ps(_mm_mul_ps(whole, scale[t]), _mm_set1_ps(unit[i]));
                    put(place_of(m + i, n), m + i, result, outputs);
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

// Weights that this thread needs first of a matrix.
inline Bytes first_of(const Member& me, const Matrix& matrix) {
    const auto [begin, end] = me.share(num_tiles(matrix));
    return panel_of(matrix, begin * TILE, std::min(end * TILE, matrix.num_outputs));
}

// Results of an expert's first layer, this thread's share of them.
inline void run_up(Member& me, const Matrix& up, Team& team, const int64_t* tokens, int64_t count,
                   Bytes then) {
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
    const auto place_of = [&](int64_t row, int64_t n) {
        return team.hidden.data() + row * width + n;
    };
    const auto keep = [&](float* place, int64_t, __m128 result, int64_t most) {
        const __mmask8 mask = (1 << most) - 1;
        _mm_mask_storeu_ps(place, mask, result);
    };
    multiply_rows(up, team.inputs, count, token_of, begin * TILE, std::min(end * TILE, width),
                  then, place_of, keep);
}

// Adds the results of its second layer to the tokens, weighted.
inline void run_down(Member& me, const Matrix& down, Team& team, const int64_t* tokens,
                     const float* shares, int64_t count, Bytes then) {
    const int64_t outputs = down.num_outputs;
    if (count <= team.routed.few) {
        for (int64_t row = 0; row < count; row++)
            me.add_product(down, team.hidden.data() + row * down.num_inputs,
                           team.total + tokens[row] * outputs, shares[row]);
        return;
    }
    const auto [begin, end] = me.share(num_tiles(down));
    const auto same = [](int64_t row) { return row; };
    const auto place_of = [&](int64_t row, int64_t n) {
        return team.total + tokens[row] * outputs + n;
    };
    const auto add = [&](float* place, int64_t row, __m128 result, int64_t most) {
        const __mmask8 mask = (1 << most) - 1;
        const __m128 before = _mm_maskz_loadu_ps(mask, place);
        const __m128 weighted = _mm_mul_ps(result, _mm_set1_ps(shares[row]));
        _mm_mask_storeu_ps(place, mask, _mm_add_ps(before, weighted));
    };
    multiply_rows(down, team.middle, count, same, begin * TILE, std::min(end * TILE, outputs),
                  then, place_of, add);
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
        const Matrix second = matrix_of(down, e);
        run_up(me, matrix_of(up, e), team, routed.tokens + start, count, first_of(me, second));
        me.wait();
        const auto [from, to] = me.share(count);
        for (int64_t row = from; row < to; row++) {
            float* hidden = team.hidden.data() + row * width;
            activate(routed.activation, hidden, width);
            if (count > routed.few) team.middle.round(row, hidden);
        }
        me.wait();
        const auto* shares = routed.shares + start;
        const bool is_last = e + 1 == routed.num_experts;
        const Bytes then = is_last ? Bytes() : first_of(me, matrix_of(up, e + 1));
        run_down(me, second, team, routed.tokens + start, shares, count, then);
        if (count <= team.routed.few) me.wait();  // `hidden` is read until then
    }
}

#endif
