// Attention of one head over one segment, in bfloat16 products with float32 sums, for x86 CPUs that have AVX-512 BF16.
//
// Keys and values are packed first, so that a product of 16 keys (or 16 dimensions) with two numbers of a row is one
// instruction; then blocks of query rows pass over them in blocks of keys, with the softmax of what they have seen so
// far (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"; as in FlashAttention, Dao et al.
// 2022). The scores of a block are all that ever exists of the n x n matrix.
#pragma once

#include <cstddef>

#include "bf16.h"

namespace diptych::avx512_bf16 {

constexpr std::size_t query_block = 96;  // rows that pass over the keys together
constexpr std::size_t max_dim = 256;     // of a head

// Rounded up to what the loops take at once.
constexpr std::size_t padded_keys(std::size_t n) { return (n + 31) / 32 * 32; }
constexpr std::size_t padded_dim(std::size_t dim) { return (dim + 15) / 16 * 16; }

// Numbers that packed keys and packed values take.
constexpr std::size_t keys_size(std::size_t n, std::size_t dim) { return padded_keys(n) * ((dim + 1) / 2) * 2; }
constexpr std::size_t values_size(std::size_t n, std::size_t dim) { return padded_keys(n) * padded_dim(dim); }

// The cosines and sines of a row's angles, (n, dim / 2), that turn the pairs (j, j + dim / 2) of a head; or none.
struct Angles {
    const float *cos, *sin;

    // Those of the n-th row on.
    Angles from(std::size_t n, std::size_t dim) const {
        return cos ? Angles{cos + n * (dim / 2), sin + n * (dim / 2)} : *this;
    }
};

// Pack n rows of `dim` numbers, `stride` apart, keys turned by their angles. Rows and dimensions beyond them become
// zeros.
void pack_keys(const bf16* keys, Angles angles, std::size_t stride, std::size_t n, std::size_t dim, bf16* packed);
void pack_values(const bf16* values, std::size_t stride, std::size_t n, std::size_t dim, bf16* packed);

// softmax(scale * queries keys^T) values for n_rows <= query_block rows, queries turned by their angles; queries and
// out have rows `stride` apart, and may be the same.
void attend(const bf16* queries, Angles angles, bf16* out, std::size_t stride, std::size_t n_rows, std::size_t dim,
            const bf16* keys, const bf16* values, std::size_t n_keys, float scale);

}  // namespace diptych::avx512_bf16
