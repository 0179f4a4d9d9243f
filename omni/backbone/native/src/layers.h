// One position through one layer: hidden += mixer(norm(hidden)).
//
// Every thread runs these functions and does its share of each part; `wait` stands between a part
// and the next that reads what other threads have written. Small things are done by every thread
// for itself, which is cheaper than waiting. Formulas are those of the Python modules of the same
// name, which are also the reference of the tests.
#pragma once

#include <utility>

#include "products.h"

struct Mamba {  // mirrored by table.py, as all structs here
    Matrix in_proj, out_proj;
    const float *conv_weight, *conv_bias, *dt_bias, *A_log, *D, *norm;
    float* conv_state;  // (window, channels)
    float* ssm_state;   // (heads, head_dim, state)
    int64_t num_heads, head_dim, num_groups, state_size, window, activation;
    double dt_min, dt_max, eps;

    int64_t inner_size() const { return num_heads * head_dim; }
    int64_t group_size() const { return num_groups * state_size; }
    int64_t conv_size() const { return inner_size() + 2 * group_size(); }
};

struct Attention {
    Matrix q_proj, k_proj, v_proj, o_proj;
    float *keys, *values;  // (kv_heads, capacity, head_dim)
    int64_t capacity, length;  // `length` positions before this one
    int64_t num_heads, num_kv_heads, head_dim;
};

struct MoE {
    Matrix gate, up, down, shared_up, shared_down, latent_in, latent_out;
    const float* correction;  // (experts)
    int64_t num_experts, num_chosen, num_groups, num_groups_chosen, normalises;
    int64_t activation, shared_activation;
    double scale;
};

struct MLP {
    Matrix up, down;
    int64_t activation;
};

enum Kind : int64_t { MAMBA, ATTENTION, MOE, MLP_ONLY };

struct Layer {
    int64_t kind;
    const float* norm;
    double eps;
    const void* mixer;
};

// What all threads share during a step.
struct Shared {
    int64_t hidden_size;
    std::vector<float> hidden;
    std::vector<float> projected;  // what the first product of a layer gives
    std::vector<float> mixed;      // what the last one reads
    std::vector<float> latent;     // of experts in a narrower space: their input, and their sum
    std::vector<float> partial;    // of attention, one for each head and stretch of keys
};

inline void grow(std::vector<float>& buffer, int64_t size) {
    if (static_cast<int64_t>(buffer.size()) < size) buffer.resize(size);
}

// One thread of the team, with memory of its own.
struct Member {
    int64_t rank, size;
    std::vector<float> normed, scratch;
    std::vector<int64_t> chosen;
    std::vector<float> weights;
    Row row;

    std::pair<int64_t, int64_t> share(int64_t count) const {
        return {count * rank / size, count * (rank + 1) / size};
    }
    void wait() const {
#pragma omp barrier
    }
    // This thread's share of a product; returns the outputs it has made.
    std::pair<int64_t, int64_t> product(const Matrix& matrix, const Sink& sink) {
        const auto [first, last] = share(num_tiles(matrix));
        multiply(matrix, row, first, last, sink);
        const int64_t tile = tile_of(matrix), most = matrix.num_outputs;
        return {std::min(first * tile, most), std::min(last * tile, most)};
    }
    void add_product(const Matrix& matrix, const float* x, float* y, float factor = 1) {
        row.set(x, matrix.num_inputs);
        product(matrix, {y, factor, true});
    }
};

// --------------------------------------------------------------------------------------- Mamba

// y_c = activation(bias_c + sum_j taps[c, j] seen[j, c]) in place of the newest input, for the
// channels from `begin` to `end`; then the window moves on by one.
inline void convolve(const Mamba& m, float* x, int64_t begin, int64_t end) {
    const int64_t channels = m.conv_size(), taps = m.window + 1;
    for (int64_t c = begin; c < end; c++) {
        float sum = m.conv_bias ? m.conv_bias[c] : 0.0f;
        const float* weight = m.conv_weight + c * taps;
        float* seen = m.conv_state + c;
        for (int64_t j = 0; j < m.window; j++) {
            sum += weight[j] * seen[j * channels];
            seen[j * channels] = j + 1 < m.window ? seen[(j + 1) * channels] : x[c];
        }
        x[c] = sum + weight[m.window] * x[c];
    }
    activate(m.activation, x + begin, end - begin);
}

// S = exp(dt A) S + dt x B^T,  y = S C + D x,  gated: y silu(gate)
inline void advance_head(const Mamba& m, int64_t head, const float* projected, float* y) {
    const float *gate = projected + head * m.head_dim, *conv = projected + m.inner_size();
    const float* x = conv + head * m.head_dim;
    const int64_t group = head / (m.num_heads / m.num_groups), size = m.state_size;
    const float* B = conv + m.inner_size() + group * size;
    const float* C = B + m.group_size();
    float dt = softplus(conv[m.conv_size() + head] + m.dt_bias[head]);
    dt = std::min(std::max(dt, static_cast<float>(m.dt_min)), static_cast<float>(m.dt_max));
    const float decay = std::exp(-dt * std::exp(m.A_log[head]));
    for (int64_t p = 0; p < m.head_dim; p++) {
        float* state = m.ssm_state + (head * m.head_dim + p) * size;
        const float scaled = dt * x[p];
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t n = 0; n < size; n++) {
            state[n] = decay * state[n] + scaled * B[n];
            sum += state[n] * C[n];
        }
        y[head * m.head_dim + p] = sum + m.D[head] * x[p];
    }
#pragma omp simd
    for (int64_t p = 0; p < m.head_dim; p++)
        y[head * m.head_dim + p] *= gate[p] * sigmoid(gate[p]);
}

inline void step(const Mamba& m, Shared& shared, Member& me) {
    // 1. Project; whoever has made an input of the convolution convolves it.
    const int64_t inner = m.inner_size();
    const auto [begin, end] = me.product(m.in_proj, {shared.projected.data(), 1, false});
    const int64_t first = std::max(begin - inner, int64_t{0});
    const int64_t last = std::min(end - inner, m.conv_size());
    if (first < last) convolve(m, shared.projected.data() + inner, first, last);
    me.wait();

    // 2. Advance and gate the heads.
    const auto [first_head, last_head] = me.share(m.num_heads);
    for (int64_t head = first_head; head < last_head; head++)
        advance_head(m, head, shared.projected.data(), shared.mixed.data());
    me.wait();

    // 3. Normalise in groups and project back.
    grow(me.scratch, inner);
    const int64_t width = inner / m.num_groups;
    for (int64_t at = 0; at < inner; at += width)
        rms_norm(shared.mixed.data() + at, m.norm + at, width, static_cast<float>(m.eps),
                 me.scratch.data() + at);
    me.add_product(m.out_proj, me.scratch.data(), shared.hidden.data());
}

// ----------------------------------------------------------------------------------- attention

// Attention of some heads over some keys: highest score, sum of e^(score - highest) and the sum of
// values so weighted, which can be put together with those of other keys.
struct Partial {
    float *highest, *total, *value;  // (heads), (heads), (heads, head_dim)
};

inline void attend(const Attention& a, int64_t kv_head, const float* q, int64_t begin, int64_t end,
                   const Partial& partial, std::vector<float>& scratch) {
    constexpr int64_t TILE = 64;
    const int64_t heads = a.num_heads / a.num_kv_heads, dim = a.head_dim;
    const float* keys = a.keys + kv_head * a.capacity * dim;
    const float* values = a.values + kv_head * a.capacity * dim;
    const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
    grow(scratch, TILE);
    float* score = scratch.data();
    for (int64_t h = 0; h < heads; h++) {
        partial.highest[h] = -1e30f;
        partial.total[h] = 0;
    }
    std::fill(partial.value, partial.value + heads * dim, 0.0f);
    for (int64_t start = begin; start < end; start += TILE) {
        const int64_t count = std::min(TILE, end - start);
        for (int64_t h = 0; h < heads; h++) {
            float highest = partial.highest[h];
            for (int64_t i = 0; i < count; i++) {
                score[i] = scale * dot(q + h * dim, keys + (start + i) * dim, dim);
                highest = std::max(highest, score[i]);
            }
            const float fade = exponential(partial.highest[h] - highest);
            float total = 0;
#pragma omp simd reduction(+ : total)
            for (int64_t i = 0; i < count; i++) {
                score[i] = exponential(score[i] - highest);
                total += score[i];
            }
            float* value = partial.value + h * dim;
            for (int64_t d = 0; d < dim; d++) value[d] *= fade;
            for (int64_t i = 0; i < count; i++) {
                const float* v = values + (start + i) * dim;
#pragma omp simd
                for (int64_t d = 0; d < dim; d++) value[d] += score[i] * v[d];
            }
            partial.highest[h] = highest;
            partial.total[h] = partial.total[h] * fade + total;
        }
    }
}

// Puts together what was found in the stretches of keys; `output` is (heads, head_dim).
inline void merge(const Partial* partials, int64_t count, int64_t heads, int64_t dim,
                  float* output) {
    for (int64_t h = 0; h < heads; h++) {
        float highest = partials[0].highest[h], total = 0;
        for (int64_t s = 1; s < count; s++) highest = std::max(highest, partials[s].highest[h]);
        std::fill(output + h * dim, output + (h + 1) * dim, 0.0f);
        for (int64_t s = 0; s < count; s++) {
            const float factor = exponential(partials[s].highest[h] - highest);
            total += factor * partials[s].total[h];
            for (int64_t d = 0; d < dim; d++)
                output[h * dim + d] += factor * partials[s].value[h * dim + d];
        }
        for (int64_t d = 0; d < dim; d++) output[h * dim + d] /= total;
    }
}

// Stretches of keys of one head of keys, so that every thread finds work.
inline int64_t num_stretches(const Attention& a, int64_t threads) {
    return (threads + a.num_kv_heads - 1) / a.num_kv_heads;
}

inline int64_t partial_size(const Attention& a, int64_t threads) {
    return a.num_heads * num_stretches(a, threads) * (a.head_dim + 2);
}

inline Partial partial_of(const Attention& a, Shared& shared, int64_t index) {
    const int64_t heads = a.num_heads / a.num_kv_heads;
    float* place = shared.partial.data() + index * heads * (a.head_dim + 2);
    return {place, place + heads, place + 2 * heads};
}

inline void step(const Attention& a, Shared& shared, Member& me) {
    const int64_t dim = a.head_dim, heads = a.num_heads / a.num_kv_heads;
    const int64_t query_size = a.num_heads * dim, key_size = a.num_kv_heads * dim;

    // 1. Queries, keys and values of this position.
    float *q = shared.projected.data(), *k = q + query_size, *v = k + key_size;
    me.product(a.q_proj, {q, 1, false});
    me.product(a.k_proj, {k, 1, false});
    me.product(a.v_proj, {v, 1, false});
    me.wait();

    // 2. Attend; whoever has the last stretch of a head stores its new key and value first.
    const int64_t stretches = num_stretches(a, me.size), num_keys = a.length + 1;
    const auto [first, last] = me.share(a.num_kv_heads * stretches);
    for (int64_t index = first; index < last; index++) {
        const int64_t kv_head = index / stretches, stretch = index % stretches;
        if (stretch == stretches - 1) {
            const int64_t place = (kv_head * a.capacity + a.length) * dim;
            std::copy(k + kv_head * dim, k + (kv_head + 1) * dim, a.keys + place);
            std::copy(v + kv_head * dim, v + (kv_head + 1) * dim, a.values + place);
        }
        attend(a, kv_head, q + kv_head * heads * dim, num_keys * stretch / stretches,
               num_keys * (stretch + 1) / stretches, partial_of(a, shared, index), me.scratch);
    }
    me.wait();

    // 3. Put the stretches together and project.
    grow(me.normed, query_size);
    std::vector<Partial> partials(stretches);
    for (int64_t kv_head = 0; kv_head < a.num_kv_heads; kv_head++) {
        for (int64_t s = 0; s < stretches; s++)
            partials[s] = partial_of(a, shared, kv_head * stretches + s);
        merge(partials.data(), stretches, heads, dim, me.normed.data() + kv_head * heads * dim);
    }
    me.add_product(a.o_proj, me.normed.data(), shared.hidden.data());
}

// ----------------------------------------------------------------------------------------- MoE

// Marks with -inf the scores of experts outside the best groups; a group is as good as its two
// best experts.
inline void keep_best_groups(const MoE& m, float* scores) {
    const int64_t width = m.num_experts / m.num_groups;
    std::vector<std::pair<float, int64_t>> quality(m.num_groups);
    for (int64_t g = 0; g < m.num_groups; g++) {
        float best = -INFINITY, second = -INFINITY;
        for (int64_t e = g * width; e < (g + 1) * width; e++) {
            if (scores[e] > best) {
                second = best;
                best = scores[e];
            } else if (scores[e] > second) {
                second = scores[e];
            }
        }
        quality[g] = {-(best + second), g};
    }
    std::sort(quality.begin(), quality.end());
    for (int64_t i = m.num_groups_chosen; i < m.num_groups; i++) {
        float* group = scores + quality[i].second * width;
        std::fill(group, group + width, -INFINITY);
    }
}

// Experts of highest sigmoid(logit) + correction, weighted with sigmoid(logit), which are divided
// by their sum if the model normalises, and scaled.
inline void choose(const MoE& m, const float* logits, Member& me) {
    grow(me.scratch, 2 * m.num_experts);
    float *scores = me.scratch.data(), *ranked = scores + m.num_experts;
    for (int64_t e = 0; e < m.num_experts; e++) {
        scores[e] = 1.0f / (1.0f + std::exp(-logits[e]));
        ranked[e] = scores[e] + m.correction[e];
    }
    if (m.num_groups_chosen < m.num_groups) keep_best_groups(m, ranked);
    me.chosen.resize(m.num_chosen);
    me.weights.resize(m.num_chosen);
    float total = 1e-20f;
    for (int64_t i = 0; i < m.num_chosen; i++) {
        const int64_t best = std::max_element(ranked, ranked + m.num_experts) - ranked;
        ranked[best] = -INFINITY;
        me.chosen[i] = best;
        me.weights[i] = scores[best];
        total += scores[best];
    }
    const float factor = static_cast<float>(m.scale) / (m.normalises ? total : 1.0f);
    for (float& weight : me.weights) weight *= factor;
}

// activation(up_e @ row) of the chosen experts; the tiles of all of them are shared out together.
inline void enter_experts(const MoE& m, Member& me, float* inside) {
    const int64_t tiles = num_tiles(m.up), tile = tile_of(m.up), width = m.up.num_outputs;
    const auto [begin, end] = me.share(tiles * m.num_chosen);
    for (int64_t at = begin; at < end;) {
        const int64_t i = at / tiles, first = at % tiles;
        const int64_t last = std::min(tiles, first + end - at);
        float* own = inside + i * width;
        multiply(matrix_of(m.up, me.chosen[i]), me.row, first, last, {own, 1, false});
        const int64_t start = first * tile, stop = std::min(last * tile, width);
        activate(m.activation, own + start, stop - start);
        at += last - first;
    }
}

inline void step(const MoE& m, Shared& shared, Member& me) {
    const bool has_latent = m.latent_in.format != NONE;
    const int64_t width = m.up.num_inputs;
    float* logits = shared.projected.data();
    float *shared_inside = logits + m.num_experts, *inside = shared.mixed.data();
    float *latent = shared.latent.data(), *routed = latent + width;

    // 1. Scores, the shared expert's first half, and the way into the narrower space.
    me.product(m.gate, {logits, 1, false});
    const auto [first, last] = me.product(m.shared_up, {shared_inside, 1, false});
    activate(m.shared_activation, shared_inside + first, last - first);
    if (has_latent) me.product(m.latent_in, {latent, 1, false});
    me.wait();

    // 2. Choose, and the first half of the chosen experts.
    choose(m, logits, me);
    if (has_latent) me.row.set(latent, width);
    enter_experts(m, me, inside);
    me.wait();

    // 3. Second halves: each thread sums its outputs over all experts.
    if (has_latent) {
        const auto [begin, end] = me.share(num_tiles(m.down));
        const int64_t tile = tile_of(m.down);
        std::fill(routed + std::min(begin * tile, width), routed + std::min(end * tile, width),
                  0.0f);
    }
    float* sum = has_latent ? routed : shared.hidden.data();
    for (int64_t i = 0; i < m.num_chosen; i++)
        me.add_product(matrix_of(m.down, me.chosen[i]), inside + i * m.up.num_outputs, sum,
                       me.weights[i]);
    if (has_latent) {
        me.wait();
        me.add_product(m.latent_out, routed, shared.hidden.data());
    }
    me.add_product(m.shared_down, shared_inside, shared.hidden.data());
}

// ----------------------------------------------------------------------------------------- MLP

inline void step(const MLP& m, Shared& shared, Member& me) {
    float* inside = shared.projected.data();
    const auto [first, last] = me.product(m.up, {inside, 1, false});
    activate(m.activation, inside + first, last - first);
    me.wait();
    me.add_product(m.down, inside, shared.hidden.data());
}
