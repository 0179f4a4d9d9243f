// Experts with float32 weights for many rows: prefill.
//
// Sixteen rows stand side by side in a register, and a weight, spread over another, meets them all:
// weights are read as they lie, and a product needs no sum across a register. The first layer leaves
// its results as the second one reads its inputs.
#pragma once

#include <memory>

#include "experts.h"

#ifdef HAS_INTEGER_PRODUCTS  // which implies registers of 16 numbers

constexpr int64_t LANES = 16;
constexpr int TALL = 14, WIDE = 2;  // outputs and registers of rows multiplied together: 28 sums
constexpr int64_t FETCHED = 32;     // inputs between two looks at what is needed next

// Numbers of some rows, `size` of each: panels of 32 rows, the last one of 16 if that is enough, in
// which the numbers of a panel's rows lie side by side. Rows are filled up with zeros.
struct Panels {
    struct alignas(64) Lane {
        float numbers[LANES];
    };
    int64_t size = 0, lanes = 0;
    std::vector<Lane> all;

    void make_room(int64_t most_rows, int64_t width) {
        size = width;
        all.resize((most_rows + LANES - 1) / LANES * width);
    }
    void set_rows(int64_t rows) { lanes = (rows + LANES - 1) / LANES; }
    int64_t wide(int64_t lane) const { return std::min<int64_t>(WIDE, lanes - lane); }
    // Number k of the rows from 16 lane on; lane is the first of its panel.
    float* at(int64_t lane, int64_t k) {
        return all[lane * size + k * wide(lane)].numbers;
    }
};

// y (TALL, V lanes) = w (TALL, size) times x (size, V lanes), while `later` is fetched.
template <int V>
__attribute__((noinline)) inline void multiply_lanes(const float* x, const float* w, int64_t size,
                                                     float* y, Bytes& later, int64_t at_once) {
    __m512 sum[TALL][V];
#pragma GCC unroll 14
    for (int i = 0; i < TALL; i++)
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) sum[i][v] = _mm512_setzero_ps();
    for (int64_t first = 0; first < size; first += FETCHED) {
        later.fetch(at_once);
        const int64_t last = std::min(first + FETCHED, size);
        for (int64_t k = first; k < last; k++) {
            __m512 rows[V];
#pragma GCC unroll 2
            for (int v = 0; v < V; v++) rows[v] = _mm512_load_ps(x + (k * V + v) * LANES);
#pragma GCC unroll 14
            for (int i = 0; i < TALL; i++) {
                const __m512 weight = _mm512_set1_ps(w[i * size + k]);
#pragma GCC unroll 2
                for (int v = 0; v < V; v++) sum[i][v] = _mm512_fmadd_ps(weight, rows[v], sum[i][v]);
            }
        }
    }
#pragma GCC unroll 14
    for (int i = 0; i < TALL; i++)
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) _mm512_store_ps(y + (i * V + v) * LANES, sum[i][v]);
}

inline Bytes weights_of(const Matrix& matrix, int64_t first, int64_t last) {
    return {static_cast<const float*>(matrix.weight) + first * matrix.num_inputs,
            std::max<int64_t>(last - first, 0) * matrix.num_inputs};
}

// Outputs `begin` to `end`, at least TALL of them, for all rows; behind the last weights, those
// needed next are `then`.
inline void multiply_panels(const Matrix& matrix, Panels& x, int64_t begin, int64_t end,
                            Bytes then, Panels& y) {
    const int64_t size = matrix.num_inputs;
    for (int64_t at = begin; at < end; at += TALL) {
        const int64_t n = std::min(at, end - TALL);  // the last tile covers a part of the one before
        const bool is_last = at + TALL >= end;
        Bytes later = is_last ? then : weights_of(matrix, n + TALL, std::min(n + 2 * TALL, end));
        const int64_t looks = (x.lanes + WIDE - 1) / WIDE * ((size + FETCHED - 1) / FETCHED);
        const int64_t at_once = ((later.end - later.begin) / looks / STEP + 1) * STEP;
        const float* w = static_cast<const float*>(matrix.weight) + n * size;
        for (int64_t lane = 0; lane < x.lanes; lane += WIDE) {
            const auto multiply = x.wide(lane) == WIDE ? multiply_lanes<WIDE> : multiply_lanes<1>;
            multiply(x.at(lane, 0), w, size, y.at(lane, n), later, at_once);
        }
    }
}

// What the threads share while they run the experts.
struct FloatTeam {
    const ExpertRows& routed;
    const float* x;
    float* total;  // (tokens, outputs)
    Panels inputs, hidden, results;
};

// Calls work(first, last) for pieces of a range so short that those of a panel fit the first cache.
template <typename Work>
inline void in_pieces(int64_t begin, int64_t end, const Work& work) {
    constexpr int64_t PIECE = 128;
    for (int64_t first = begin; first < end; first += PIECE)
        work(first, std::min(first + PIECE, end));
}

// Numbers `begin` to `end` of the inputs of an expert's rows.
inline void gather(FloatTeam& team, const int64_t* tokens, int64_t count, int64_t begin,
                   int64_t end) {
    Panels& to = team.inputs;
    for (int64_t lane = 0; lane < to.lanes; lane += WIDE)
        in_pieces(begin, end, [&](int64_t first, int64_t last) {
            const int64_t width = to.wide(lane) * LANES, begun = lane * LANES;
            for (int64_t i = 0; i < width; i++) {
                float* place = to.at(lane, first) + i;
                const bool is_row = begun + i < count;
                const float* from = team.x + (is_row ? tokens[begun + i] * to.size : 0);
                for (int64_t k = first; k < last; k++, place += width)
                    *place = is_row ? from[k] : 0;
            }
        });
}

// Adds outputs `begin` to `end` of an expert's results to the tokens, weighted.
inline void scatter(FloatTeam& team, const int64_t* tokens, const float* shares, int64_t count,
                    int64_t begin, int64_t end) {
    Panels& from = team.results;
    for (int64_t lane = 0; lane < from.lanes; lane += WIDE)
        in_pieces(begin, end, [&](int64_t first, int64_t last) {
            const int64_t width = from.wide(lane) * LANES, begun = lane * LANES;
            for (int64_t i = 0; i < std::min(width, count - begun); i++) {
                const float* result = from.at(lane, first) + i;
                const float share = shares[begun + i];
                float* sum = team.total + tokens[begun + i] * from.size;
                for (int64_t n = first; n < last; n++, result += width) sum[n] += share * *result;
            }
        });
}

// total[token] += share * down(activation(up(x[token]))) over the pairs of each expert in turn.
// Threads share the outputs, so that no two of them write to one number.
inline void run_experts(const Member& me, const Matrix& up, const Matrix& down, FloatTeam& team) {
    const ExpertRows& routed = team.routed;
    const auto [first_k, last_k] = me.share(up.num_inputs);
    const auto [first_up, last_up] = me.share(up.num_outputs);
    const auto [first_down, last_down] = me.share(down.num_outputs);
    const auto [first, last] = me.share(routed.num_tokens);
    std::fill(team.total + first * down.num_outputs, team.total + last * down.num_outputs, 0.0f);
    for (int64_t e = 0, start = 0; e < routed.num_experts; start = routed.ends[e++]) {
        const int64_t count = routed.ends[e] - start;
        if (count == 0) continue;
        const int64_t* tokens = routed.tokens + start;
        const Matrix one = matrix_of(up, e), two = matrix_of(down, e);
        me.wait();  // nobody reads the inputs of the expert before
        if (me.rank == 0)
            for (Panels* panels : {&team.inputs, &team.hidden, &team.results})
                panels->set_rows(count);
        me.wait();
        gather(team, tokens, count, first_k, last_k);
        me.wait();
        multiply_panels(one, team.inputs, first_up, last_up,
                        weights_of(two, first_down, first_down + TALL), team.hidden);
        for (int64_t lane = 0; lane < team.hidden.lanes; lane += WIDE)
            activate(routed.activation, team.hidden.at(lane, first_up),
                     (last_up - first_up) * team.hidden.wide(lane) * LANES);
        me.wait();
        const bool is_last = e + 1 == routed.num_experts;
        multiply_panels(two, team.hidden, first_down, last_down,
                        is_last ? Bytes()
                                : weights_of(matrix_of(up, e + 1), first_up, first_up + TALL),
                        team.results);
        scatter(team, tokens, routed.shares + start, count, first_down, last_down);
    }
}

// Threads that find enough outputs each.
inline int threads_for(const Matrix& up, const Matrix& down, int threads) {
    const int64_t outputs = std::min(up.num_outputs, down.num_outputs);
    return static_cast<int>(std::min<int64_t>(threads, outputs / TALL));
}

#endif
