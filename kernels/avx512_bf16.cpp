#include "avx512_bf16.h"

#include <cmath>
#include <cstdint>
#include <cstring>

#include "avx512_math.h"

// This file is compiled for AVX-512, so it keeps to plain loops: a template of the standard library that it made could
// be the one that the linker takes for the whole library.

namespace diptych::avx512_bf16 {
namespace {

constexpr std::size_t lanes = 16;       // float32 numbers, and pairs of bfloat16, of a vector
constexpr std::size_t rows = 6;         // of queries, whose sums are kept in registers
constexpr std::size_t key_block = 256;  // keys whose scores are kept in the first cache
constexpr float hidden = -1e30f;        // the score of a row of padding

static_assert(query_block % rows == 0 && key_block % (2 * lanes) == 0, "blocks are whole");

__m512bh bf16_pairs(__m512i bits) { return (__m512bh)bits; }

__m512i both_at(const bf16* pair) {
    std::int32_t bits;
    std::memcpy(&bits, pair, sizeof bits);
    return _mm512_set1_epi32(bits);
}

// sums (rows, n_vectors * lanes) += a (rows, 2 * n_pairs) b, where b has its pairs `b_pair` apart and its vectors
// `b_vector`.
template <std::size_t n_vectors, bool from_zero>
void multiply(const bf16* a, std::size_t a_row, const bf16* b, std::size_t b_pair, std::size_t b_vector,
              std::size_t n_pairs, float* sums, std::size_t sums_row) {
    __m512 sum[rows][n_vectors];
    for (std::size_t r = 0; r < rows; r++)
        for (std::size_t v = 0; v < n_vectors; v++)
            sum[r][v] = from_zero ? _mm512_setzero_ps() : _mm512_loadu_ps(sums + r * sums_row + v * lanes);
    for (std::size_t pair = 0; pair < n_pairs; pair++) {
        __m512bh column[n_vectors];
        for (std::size_t v = 0; v < n_vectors; v++)
            column[v] = bf16_pairs(_mm512_loadu_si512(b + pair * b_pair + v * b_vector));
        for (std::size_t r = 0; r < rows; r++) {
            const __m512bh both = bf16_pairs(both_at(a + r * a_row + 2 * pair));
            for (std::size_t v = 0; v < n_vectors; v++) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], both, column[v]);
        }
    }
    for (std::size_t r = 0; r < rows; r++)
        for (std::size_t v = 0; v < n_vectors; v++) _mm512_storeu_ps(sums + r * sums_row + v * lanes, sum[r][v]);
}

// The scores (rows, n) of n keys, a multiple of 32.
void score(const bf16* queries, std::size_t n_pairs, const bf16* keys, std::size_t n, float* scores) {
    const std::size_t of_lanes = n_pairs * 2 * lanes, row = 2 * n_pairs;  // numbers of 16 keys, of a query
    std::size_t key = 0;
    for (; key + 4 * lanes <= n; key += 4 * lanes)
        multiply<4, true>(queries, row, keys + key * row, 2 * lanes, of_lanes, n_pairs, scores + key, key_block);
    if (key < n)
        multiply<2, true>(queries, row, keys + key * row, 2 * lanes, of_lanes, n_pairs, scores + key, key_block);
}

// out (rows, wide) += shares (rows, n) values.
void weigh(const bf16* shares, const bf16* values, std::size_t wide, std::size_t n, float* out) {
    for (std::size_t at = 0, left = wide / lanes; left;) {
        const std::size_t take = left == 5 ? 3 : left < 4 ? left : 4;  // of five none goes alone
        const bf16* part = values + 2 * at;
        switch (take) {
            case 1: multiply<1, false>(shares, key_block, part, 2 * wide, 2 * lanes, n / 2, out + at, wide); break;
            case 2: multiply<2, false>(shares, key_block, part, 2 * wide, 2 * lanes, n / 2, out + at, wide); break;
            case 3: multiply<3, false>(shares, key_block, part, 2 * wide, 2 * lanes, n / 2, out + at, wide); break;
            default: multiply<4, false>(shares, key_block, part, 2 * wide, 2 * lanes, n / 2, out + at, wide);
        }
        at += take * lanes, left -= take;
    }
}

// What a row has seen: the largest score, times scale in powers of two, and the sum of what the exponentials came to.
struct Seen {
    float largest, sum;
};

// Turn a row's n scores into shares of the whole so far, and scale down what `out` (wide) has of earlier keys.
void soften(const float* scores, std::size_t n, float scale, bf16* shares, Seen& seen, float* out, std::size_t wide) {
    __m512 most = _mm512_loadu_ps(scores);
    for (std::size_t key = lanes; key < n; key += lanes) most = _mm512_max_ps(most, _mm512_loadu_ps(scores + key));
    const float here = _mm512_reduce_max_ps(most) * scale;
    if (!(here <= seen.largest)) {  // also where a score is no number, so that the row becomes none
        const float shrink = std::exp2(seen.largest - here);
        seen.largest = here, seen.sum *= shrink;
        for (std::size_t at = 0; at < wide; at += lanes)
            _mm512_storeu_ps(out + at, _mm512_mul_ps(_mm512_loadu_ps(out + at), _mm512_set1_ps(shrink)));
    }
    const __m512 times = _mm512_set1_ps(scale), largest = _mm512_set1_ps(seen.largest);
    __m512 sum = _mm512_setzero_ps();
    for (std::size_t key = 0; key < n; key += 2 * lanes) {
        const __m512 low = exp2(_mm512_fmsub_ps(_mm512_loadu_ps(scores + key), times, largest));
        const __m512 high = exp2(_mm512_fmsub_ps(_mm512_loadu_ps(scores + key + lanes), times, largest));
        sum = _mm512_add_ps(sum, _mm512_add_ps(low, high));
        _mm512_storeu_si512(shares + key, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
    seen.sum += _mm512_reduce_add_ps(sum);
}

// A row of a head in float32, turned by the row's angles, with zeros behind it up to 32.
void turn(const bf16* row, Angles angles, std::size_t dim, float* out) {
    const auto at_most = [&](std::size_t at, std::size_t end) { return first(end > at ? end - at : 0); };
    const auto some = [&](const bf16* from, __mmask16 there) { return widened(_mm256_maskz_loadu_epi16(there, from)); };
    for (std::size_t at = 0; at < dim; at += 2 * lanes) {
        _mm512_storeu_ps(out + at, some(row + at, at_most(at, dim)));
        _mm512_storeu_ps(out + at + lanes, some(row + at + lanes, at_most(at + lanes, dim)));
    }
    if (!angles.cos) return;
    const std::size_t half = dim / 2;
    for (std::size_t at = 0; at < half; at += lanes) {
        const __mmask16 there = at_most(at, half);
        const __m512 cos = _mm512_maskz_loadu_ps(there, angles.cos + at);
        const __m512 sin = _mm512_maskz_loadu_ps(there, angles.sin + at);
        const __m512 a = _mm512_maskz_loadu_ps(there, out + at), b = _mm512_maskz_loadu_ps(there, out + half + at);
        _mm512_mask_storeu_ps(out + at, there, _mm512_fmsub_ps(a, cos, _mm512_mul_ps(b, sin)));
        _mm512_mask_storeu_ps(out + half + at, there, _mm512_fmadd_ps(b, cos, _mm512_mul_ps(a, sin)));
    }
}

}  // namespace

void pack_keys(const bf16* keys, Angles angles, std::size_t stride, std::size_t n, std::size_t dim, bf16* packed) {
    const std::size_t n_pairs = (dim + 1) / 2;
    const __m512i apart = _mm512_setr_epi32(0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240);
    alignas(64) float row[max_dim];
    for (std::size_t at = 0; at < max_dim; at += lanes) _mm512_store_ps(row + at, _mm512_setzero_ps());
    for (std::size_t key = 0; key < padded_keys(n); key++) {
        if (key < n) turn(keys + key * stride, angles.from(key, dim), dim, row);
        const __mmask16 some = key < n ? 0xffff : 0;
        // sixteen keys stand side by side for each pair
        bf16* to = packed + key / lanes * n_pairs * 2 * lanes + key % lanes * 2;
        for (std::size_t at = 0; at < dim; at += 2 * lanes) {
            const __m512 low = _mm512_maskz_load_ps(some, row + at),
                         high = _mm512_maskz_load_ps(some, row + at + lanes);
            _mm512_mask_i32scatter_epi32(to + at * lanes, first(n_pairs - at / 2), apart,
                                         (__m512i)_mm512_cvtne2ps_pbh(high, low), sizeof(std::int32_t));
        }
    }
}

void pack_values(const bf16* values, std::size_t stride, std::size_t n, std::size_t dim, bf16* packed) {
    const std::size_t wide = padded_dim(dim);
    for (std::size_t key = 0; key < padded_keys(n); key += 2)
        for (std::size_t at = 0; at < wide; at += lanes) {  // two rows side by side become pairs
            const bf16* from = values + key * stride + at;
            const __m256i low = _mm256_maskz_loadu_epi16(key < n ? first(dim - at) : 0, from);
            const __m256i high = _mm256_maskz_loadu_epi16(key + 1 < n ? first(dim - at) : 0, from + stride);
            const __m512i above = _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16);
            _mm512_storeu_si512(packed + key * wide + 2 * at, _mm512_or_si512(_mm512_cvtepu16_epi32(low), above));
        }
}

void attend(const bf16* queries, Angles angles, bf16* out, std::size_t stride, std::size_t n_rows, std::size_t dim,
            const bf16* keys, const bf16* values, std::size_t n_keys, float scale) {
    const std::size_t n_pairs = (dim + 1) / 2, wide = padded_dim(dim), whole = (n_rows + rows - 1) / rows * rows;
    alignas(64) bf16 asked[query_block * (max_dim + 2 * lanes)];
    alignas(64) float sums[query_block * max_dim];
    alignas(64) float scores[rows * key_block];
    alignas(64) bf16 shares[rows * key_block];
    Seen seen[query_block];
    alignas(64) float turned[max_dim];
    for (std::size_t row = 0; row < whole; row++) {
        // a row of padding is the first once more
        turn(queries + (row < n_rows ? row : 0) * stride, angles.from(row < n_rows ? row : 0, dim), dim, turned);
        for (std::size_t at = 0; at < dim; at += lanes)
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(asked + row * 2 * n_pairs + at),
                                (__m256i)_mm512_cvtneps_pbh(_mm512_load_ps(turned + at)));
        for (std::size_t at = 0; at < wide; at += lanes) _mm512_store_ps(sums + row * wide + at, _mm512_setzero_ps());
        seen[row] = {-INFINITY, 0.0f};
    }
    for (std::size_t start = 0; start < n_keys; start += key_block) {
        const std::size_t left = padded_keys(n_keys) - start, n = left < key_block ? left : key_block;
        for (std::size_t row = 0; row < whole; row += rows) {
            score(asked + row * 2 * n_pairs, n_pairs, keys + start * 2 * n_pairs, n, scores);
            for (std::size_t r = 0; r < rows; r++) {
                for (std::size_t key = n_keys - start; key < n; key++) scores[r * key_block + key] = hidden;
                soften(scores + r * key_block, n, scale * log2_e, shares + r * key_block, seen[row + r],
                       sums + (row + r) * wide, wide);
            }
            weigh(shares, values + start * wide, wide, n, sums + row * wide);
        }
    }
    for (std::size_t row = 0; row < n_rows; row++) {
        const __m512 sum = _mm512_set1_ps(seen[row].sum);
        for (std::size_t at = 0; at < dim; at += lanes)
            _mm256_mask_storeu_epi16(
                out + row * stride + at, first(dim - at),
                (__m256i)_mm512_cvtneps_pbh(_mm512_div_ps(_mm512_load_ps(sums + row * wide + at), sum)));
    }
}

}  // namespace diptych::avx512_bf16
