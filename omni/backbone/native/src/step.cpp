// What Python calls: a decoding step for one row on the CPU (docs/adr/0017), and int8 products of
// many rows (docs/adr/0018).
//
// Python describes weights in tables of pointers (table.py). Nothing here allocates what outlives a
// call, and nothing is written but results and, in a step, the states.

#include <omp.h>

#include "experts.h"
#include "float_experts.h"
#include "layers.h"
#include "rows.h"

struct Decoder {
    int64_t num_layers, hidden_size;
    const Layer* layers;
    const float* norm;
    double eps;
};

namespace {

template <typename Mixer>
const Mixer& as(const Layer& layer) {
    return *static_cast<const Mixer*>(layer.mixer);
}

// Make the shared memory large enough for a layer.
void make_room(const Layer& layer, int threads, Shared& shared) {
    switch (layer.kind) {
        case MAMBA:
            grow(shared.projected, as<Mamba>(layer).in_proj.num_outputs);
            return grow(shared.mixed, as<Mamba>(layer).inner_size());
        case ATTENTION: {
            const auto& a = as<Attention>(layer);
            grow(shared.projected, (a.num_heads + 2 * a.num_kv_heads) * a.head_dim);
            return grow(shared.partial, partial_size(a, threads));
        }
        case MOE: {
            const auto& m = as<MoE>(layer);
            grow(shared.projected, m.num_experts + m.shared_up.num_outputs);
            grow(shared.latent, 2 * m.up.num_inputs);
            return grow(shared.mixed, m.num_chosen * m.up.num_outputs);
        }
        case MLP_ONLY:
            return grow(shared.projected, as<MLP>(layer).up.num_outputs);
    }
}

void step_layer(const Layer& layer, Shared& shared, Member& me) {
    const int64_t size = shared.hidden_size;
    rms_norm(shared.hidden.data(), layer.norm, size, static_cast<float>(layer.eps),
             me.normed.data());
    me.row.set(me.normed.data(), size);
    switch (layer.kind) {
        case MAMBA: return step(as<Mamba>(layer), shared, me);
        case ATTENTION: return step(as<Attention>(layer), shared, me);
        case MOE: return step(as<MoE>(layer), shared, me);
        case MLP_ONLY: return step(as<MLP>(layer), shared, me);
    }
}

#ifdef HAS_INTEGER_PRODUCTS
template <typename Shared>
void run_team(const Matrix& up, const Matrix& down, Shared& team, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Member me;
        me.rank = omp_get_thread_num();
        me.size = omp_get_num_threads();
        run_experts(me, up, down, team);
    }
}
#endif

}  // namespace

extern "C" {

// Takes an embedding (hidden_size) through all layers and the last norm, to `output`.
void omni_step(const Decoder* decoder, const float* embedding, float* output, int threads) {
    Shared shared;
    shared.hidden_size = decoder->hidden_size;
    shared.hidden.assign(embedding, embedding + decoder->hidden_size);
    for (int64_t i = 0; i < decoder->num_layers; i++)
        make_room(decoder->layers[i], threads, shared);
#pragma omp parallel num_threads(threads)
    {
        Member me;
        me.rank = omp_get_thread_num();
        me.size = omp_get_num_threads();
        grow(me.normed, decoder->hidden_size);
        for (int64_t i = 0; i < decoder->num_layers; i++) {
            step_layer(decoder->layers[i], shared, me);
            me.wait();
        }
    }
    rms_norm(shared.hidden.data(), decoder->norm, decoder->hidden_size,
             static_cast<float>(decoder->eps), output);
}

// y = matrix @ x + bias
void omni_product(const Matrix* matrix, const float* x, float* y, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Member me;
        me.rank = omp_get_thread_num();
        me.size = omp_get_num_threads();
        me.row.set(x, matrix->num_inputs);
        me.product(*matrix, {y, 1, false});
    }
}

// total (tokens, outputs) = the weighted sum of each token's experts, from int8 weights or from rows
// of floats. Returns 0 where the processor cannot, or experts are too small; nothing is done then.
int omni_experts(const Matrix* up, const Matrix* down, const ExpertRows* routed, const float* x,
                 float* total, int threads) {
#ifdef HAS_INTEGER_PRODUCTS
    int64_t most = 0;
    for (int64_t e = 0, start = 0; e < routed->num_experts; start = routed->ends[e++])
        most = std::max(most, routed->ends[e] - start);
    if (up->format == FLOAT_ROWS) {
        threads = threads_for(*up, *down, threads);
        if (threads == 0) return 0;
        FloatTeam team{*routed, x, total, {}, {}, {}};
        team.inputs.make_room(most, up->num_inputs);
        team.hidden.make_room(most, up->num_outputs);
        team.results.make_room(most, down->num_outputs);
        run_team(*up, *down, team, threads);
        return 1;
    }
    Team team{*routed, x, total, {}, {}, std::vector<float>(most * up->num_outputs)};
    team.inputs.make_room(routed->num_tokens, up->num_inputs);
    team.middle.make_room(most, down->num_inputs);
    run_team(*up, *down, team, threads);
    return 1;
#else
    return 0;
#endif
}

// Rounds rows to 8 bits; with `rest`, what that leaves of a row is rounded again.
void omni_round(const float* x, int64_t rows, int64_t size, int8_t* q, float* units, int8_t* rest,
                float* rest_units, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const float* values = x + row * size;
        int8_t* integers = q + row * size;
        units[row] = round_row(values, size, integers);
        if (rest == nullptr) continue;
        std::vector<float> left(size);
#pragma omp simd
        for (int64_t k = 0; k < size; k++)
            left[k] = values[k] - static_cast<float>(integers[k]) * units[row];
        rest_units[row] = round_row(left.data(), size, rest + row * size);
    }
}

// y (rows, outputs) = sums times the scale of each output and the unit of each row, or adds that.
void omni_scale(const int32_t* sums, const float* scale, const float* units, int64_t rows,
                int64_t outputs, int adds, float* y, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++)
        scale_row(sums + row * outputs, scale, units[row], outputs, adds != 0, y + row * outputs);
}

// Sizes of the structs, which Python compares with its own.
void omni_sizes(int64_t* sizes) {
    const int64_t found[] = {sizeof(Matrix), sizeof(Mamba), sizeof(Attention), sizeof(MoE),
                             sizeof(MLP),    sizeof(Layer), sizeof(Decoder),   sizeof(ExpertRows)};
    std::copy(std::begin(found), std::end(found), sizes);
}

}  // extern "C"
