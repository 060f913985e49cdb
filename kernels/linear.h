// Linear layers, and two of them with an activation between: what an encoder needs of them, in tasks for a pool of
// threads. Rows are taken in bands, so that what stands between two steps never grows with the number of rows.
#pragma once

#include "avx512_int8.h"
#include "parallel.h"

namespace diptych {

// What a row goes through before a layer: with a bias, to mean 0 and variance 1 (LayerNorm), without one to a mean
// square of 1 (RMSNorm), then times the weight; nothing where there is no weight.
struct Norm {
    const float *weight, *bias;  // (width,)
    float eps;
};

// Rows (n, width) in float32 or bfloat16, one of them none, and how they are normalised.
struct Rows {
    const float* wide;
    const bf16* narrow;
    std::size_t n, width;
    Norm norm;
};

// Whether this CPU, and its system, can do it.
bool linear_supported();

// Bytes that these need beside their rows; `scratch` is aligned to 64 bytes.
std::size_t linear_scratch(std::size_t n_in);
std::size_t mlp_scratch(std::size_t n_in, std::size_t n_inner);

// out (n, n_out) = activation(norm(x) weights^T + bias), and what is added to it, float32 or bfloat16. A row gets the
// same bits whatever other rows are computed with it.
void linear(const Rows& x, const avx512_int8::Layer& layer, avx512_int8::Out out, void* scratch,
            const Parallel& parallel);

// out (n, n_out) = down(up(norm(x))), or down(gate(norm(x)) * up(norm(x))) where there is a gate, and what is added to
// it, which may be x, as may its place.
void mlp(const Rows& x, const avx512_int8::Layer& up, const avx512_int8::Layer* gate, const avx512_int8::Layer& down,
         avx512_int8::Out out, void* scratch, const Parallel& parallel);

}  // namespace diptych
