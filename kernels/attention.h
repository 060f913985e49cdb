// Attention within segments of rows: what an encoder needs of it, in tasks for a pool of threads.
#pragma once

#include <cstddef>
#include <vector>

#include "parallel.h"

namespace diptych {

// The next `count` segments of `length` rows each.
struct Span {
    std::size_t count, length;
};

// Queries, keys and values (n, n_head * dim) float32, and where the outcome of that shape goes.
struct Rows {
    const float *queries, *keys, *values;
    float* out;
    std::size_t n_head, dim;
};

// Whether this CPU, and its system, can do it.
bool attention_supported();

// Bytes that attention over these spans needs beside its rows.
std::size_t attention_scratch(const std::vector<Span>& spans, std::size_t n_head, std::size_t dim);

// out = softmax(scale * queries keys^T) values within each segment and head; `scratch` is aligned to 64 bytes.
void attention(const Rows& rows, const std::vector<Span>& spans, float scale, void* scratch, const Parallel& parallel);

}  // namespace diptych
