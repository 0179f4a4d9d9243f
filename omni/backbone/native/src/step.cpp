// One decoding step of the hybrid decoder for one row on the CPU; docs/adr/0017 says why.
//
// Python describes the model once in tables of pointers (table.py) and calls these functions with
// them. Nothing here allocates what outlives a call, and nothing is written but the states.

#include <omp.h>

#include "layers.h"

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

// Sizes of the structs, which Python compares with its own.
void omni_sizes(int64_t* sizes) {
    const int64_t found[] = {sizeof(Matrix), sizeof(Mamba), sizeof(Attention), sizeof(MoE),
                             sizeof(MLP),    sizeof(Layer), sizeof(Decoder)};
    std::copy(std::begin(found), std::end(found), sizes);
}

}  // extern "C"
