// Attention within segments of rows: what an encoder needs of it, in tasks for a pool of threads.
#pragma once

#include <cstddef>
#include <vector>

#include "bf16.h"
#include "parallel.h"

namespace diptych {

// The next `count` segments of `length` rows each.
struct Span {
    std::size_t count, length;
};

// Queries, keys and values (n, n_head * dim), and where the outcome of that shape goes, which may be the queries'
// place. Queries and keys are turned before, in each head the pairs (j, j + dim / 2) by angles whose cosines and sines
// (n, dim / 2) are given; or not, where there are none.
struct Attended {
    const bf16 *queries, *keys, *values;
    const float *cos, *sin;
    bf16* out;
    std::size_t n_head, dim;
};

// Whether this CPU, and its system, can do it.
bool attention_supported();

// Bytes that attention over these spans needs beside its rows: never much more than the longest segment of one head.
std::size_t attention_scratch(const std::vector<Span>& spans, std::size_t n_head, std::size_t dim);

// out = softmax(scale * queries keys^T) values within each segment and head; `scratch` is aligned to 64 bytes.
void attention(const Attended& rows, const std::vector<Span>& spans, float scale, void* scratch,
               const Parallel& parallel);

}  // namespace diptych
