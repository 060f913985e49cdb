// Linear layers: what an encoder needs of them, in tasks for a pool of threads.
#pragma once

#include "avx512_int8.h"
#include "parallel.h"

namespace diptych {

// Whether this CPU, and its system, can do it.
bool linear_supported();

// Bytes that n_rows rows of n_in numbers need beside themselves.
std::size_t linear_scratch(std::size_t n_rows, std::size_t n_in);

// out (n_rows, n_out) = activation(x (n_rows, n_in) weights^T + bias); `scratch` is aligned to 64 bytes. A row gets the
// same bits whatever other rows are computed with it.
void linear(const float* x, std::size_t n_rows, const avx512_int8::Layer& layer, float* out, void* scratch,
            const Parallel& parallel);

}  // namespace diptych
