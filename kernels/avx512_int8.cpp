#include "avx512_int8.h"

#include <cmath>
#include <cstring>

#include "avx512_math.h"

// Compiled for AVX-512 like avx512_bf16.cpp, and plain for the same reason.

namespace diptych::avx512_int8 {
namespace {

constexpr std::size_t lanes = 16;  // int32 sums of a vector
constexpr std::size_t vectors = panel / lanes;
constexpr std::size_t rows = 6;  // whose sums are kept in registers

static_assert(row_block % rows == 0, "blocks are whole");

std::size_t least(std::size_t a, std::size_t b) { return a < b ? a : b; }

__m512i four_at(const std::uint8_t* numbers) {
    std::int32_t bits;
    std::memcpy(&bits, numbers, sizeof bits);
    return _mm512_set1_epi32(bits);
}

// sums (n, panel) += scales * (numbers weights) over the n_fours * 4 inputs of a group, for n <= rows rows.
template <std::size_t n>
void accumulate(const std::uint8_t* numbers, std::size_t row, const std::int8_t* weights, std::size_t n_fours,
                const std::int32_t* shift, const float* scales, std::size_t scale_row, float* sums) {
    __m512i sum[n][vectors];
    for (std::size_t r = 0; r < n; r++)
        for (std::size_t v = 0; v < vectors; v++) sum[r][v] = _mm512_loadu_si512(shift + v * lanes);
    for (std::size_t four = 0; four < n_fours; four++) {
        __m512i column[vectors];
        for (std::size_t v = 0; v < vectors; v++)
            column[v] = _mm512_loadu_si512(weights + four * panel * 4 + v * lanes * 4);
        for (std::size_t r = 0; r < n; r++) {
            const __m512i same = four_at(numbers + r * row + four * 4);
            for (std::size_t v = 0; v < vectors; v++) sum[r][v] = _mm512_dpbusd_epi32(sum[r][v], same, column[v]);
        }
    }
    for (std::size_t r = 0; r < n; r++) {
        const __m512 scale = _mm512_set1_ps(scales[r * scale_row]);
        for (std::size_t v = 0; v < vectors; v++) {
            float* to = sums + r * panel + v * lanes;
            _mm512_storeu_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][v]), scale, _mm512_loadu_ps(to)));
        }
    }
}

// The normal distribution's share below x, by the error function's approximation 7.1.26 of Abramowitz and Stegun
// (1964), which is within 1.5e-7.
__m512 normal(__m512 x) {
    const __m512 one = _mm512_set1_ps(1), z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f));
    const __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one));
    __m512 y = _mm512_set1_ps(1.061405429f);
    y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(-1.453152027f));
    y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(1.421413741f));
    y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(-0.284496736f));
    y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(0.254829592f));
    y = _mm512_mul_ps(y, _mm512_mul_ps(t, exp2(_mm512_mul_ps(_mm512_mul_ps(z, z), _mm512_set1_ps(-log2_e)))));
    const __m512 above = _mm512_mul_ps(y, _mm512_set1_ps(0.5f));  // beyond |x|, on one side
    return _mm512_mask_sub_ps(above, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ), one, above);
}

__m512 activated(__m512 x, Activation activation) {
    switch (activation) {
        case Activation::gelu: return _mm512_mul_ps(x, normal(x));
        case Activation::gelu_tanh: {  // 0.5 (1 + tanh(y)) = sigmoid(2 y)
            const __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_mul_ps(x, _mm512_set1_ps(0.044715f)));
            return _mm512_mul_ps(x, sigmoid(_mm512_mul_ps(_mm512_add_ps(x, cube), _mm512_set1_ps(1.59576912f))));
        }
        case Activation::quick_gelu: return _mm512_mul_ps(x, sigmoid(_mm512_mul_ps(x, _mm512_set1_ps(1.702f))));
        case Activation::silu: return _mm512_mul_ps(x, sigmoid(x));
        case Activation::none: break;
    }
    return x;
}

// Rounded to the nearest, and to the even one of two.
__m256i narrowed(__m512 x) {
    const __m512i bits = _mm512_castps_si512(x), one = _mm512_set1_epi32(1);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 none = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, none, _mm512_set1_epi32(-1)), 16));
}

void store(__m512 x, Out out, __mmask16 there) {
    if (out.added) x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(there, out.added));
    if (out.into == Into::narrow) return _mm256_mask_storeu_epi16(out.numbers, there, narrowed(x));
    if (out.into == Into::half) {
        const __m256i halves = _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        return _mm256_mask_storeu_epi16(out.numbers, there, halves);
    }
    if (out.into == Into::product) x = _mm512_mul_ps(x, _mm512_maskz_loadu_ps(there, out.numbers));
    _mm512_mask_storeu_ps(out.numbers, there, x);
}

}  // namespace

void widen(const bf16* row, std::size_t n, float* out) {
    for (std::size_t at = 0; at < n; at += lanes)
        _mm512_mask_storeu_ps(out + at, first(n - at), widened(_mm256_maskz_loadu_epi16(first(n - at), row + at)));
}

void normalise(const float* row, std::size_t n, const float* weight, const float* bias, float eps, float* out) {
    const auto sum_of = [&](const auto& term) {
        __m512 sum = _mm512_setzero_ps();
        for (std::size_t at = 0; at < n; at += lanes) {
            const __mmask16 there = first(n - at);
            sum = _mm512_mask_add_ps(sum, there, sum, term(_mm512_maskz_loadu_ps(there, row + at)));
        }
        return _mm512_reduce_add_ps(sum);
    };
    const float of = static_cast<float>(n);
    const __m512 mean = _mm512_set1_ps(bias ? sum_of([](__m512 x) { return x; }) / of : 0);
    const float square = sum_of([&](__m512 x) {
        const __m512 far = _mm512_sub_ps(x, mean);
        return _mm512_mul_ps(far, far);
    });
    const __m512 times = _mm512_set1_ps(1 / std::sqrt(square / of + eps));
    for (std::size_t at = 0; at < n; at += lanes) {
        const __mmask16 there = first(n - at);
        const __m512 far = _mm512_sub_ps(_mm512_maskz_loadu_ps(there, row + at), mean);
        const __m512 shift = bias ? _mm512_maskz_loadu_ps(there, bias + at) : _mm512_setzero_ps();
        const __m512 scaled = _mm512_mul_ps(_mm512_mul_ps(far, times), _mm512_maskz_loadu_ps(there, weight + at));
        _mm512_mask_storeu_ps(out + at, there, _mm512_add_ps(scaled, shift));
    }
}

void quantise(const float* row, std::size_t n_in, std::uint8_t* numbers, float* scales) {
    for (std::size_t start = 0; start < n_in; start += group) {
        const std::size_t end = least(start + group, n_in);
        __m512 most = _mm512_setzero_ps();
        __mmask16 none = 0;  // where something is no number, which int8 has not: the scale says so instead
        for (std::size_t at = start; at < end; at += lanes) {
            const __m512 some = _mm512_maskz_loadu_ps(first(end - at), row + at);
            most = _mm512_max_ps(most, _mm512_abs_ps(some));
            none |= _mm512_cmp_ps_mask(some, some, _CMP_UNORD_Q);
        }
        const float largest = none ? NAN : _mm512_reduce_max_ps(most);
        *scales++ = largest / 127;
        const __m512 times = _mm512_set1_ps(largest > 0 ? 127 / largest : 0);
        for (std::size_t at = start; at < end; at += lanes) {
            const __m512 some = _mm512_mul_ps(_mm512_maskz_loadu_ps(first(end - at), row + at), times);
            const __m512i shifted = _mm512_add_epi32(_mm512_cvtps_epi32(some), _mm512_set1_epi32(128));
            _mm512_mask_cvtepi32_storeu_epi8(numbers + at, first(padded(n_in) - at), shifted);
        }
    }
}

void multiply(const std::uint8_t* numbers, const float* scales, std::size_t n_rows, const Layer& layer,
              std::size_t at_panel, Out out) {
    const std::size_t row = padded(layer.n_in), n_groups = groups(layer.n_in), first_out = at_panel * panel;
    const std::int8_t* of_panel = layer.packed + first_out * row;
    alignas(64) float sums[row_block * panel];
    for (std::size_t i = 0; i < n_rows * panel; i += lanes) _mm512_store_ps(sums + i, _mm512_setzero_ps());
    for (std::size_t g = 0; g < n_groups; g++) {
        const std::size_t start = g * group, n_fours = (least(start + group, row) - start) / 4;
        const std::int8_t* of_group = of_panel + start * panel;
        const std::int32_t* shift = layer.shift + g * padded_outs(layer.n_out) + first_out;
        std::size_t r = 0;
        const auto of_row = [&] { return numbers + r * row + start; };
        const auto scale = [&] { return scales + r * n_groups + g; };
        for (; r + rows <= n_rows; r += rows)
            accumulate<rows>(of_row(), row, of_group, n_fours, shift, scale(), n_groups, sums + r * panel);
        for (; r + 2 <= n_rows; r += 2)
            accumulate<2>(of_row(), row, of_group, n_fours, shift, scale(), n_groups, sums + r * panel);
        if (r < n_rows) accumulate<1>(of_row(), row, of_group, n_fours, shift, scale(), n_groups, sums + r * panel);
    }
    for (std::size_t v = 0; v < vectors && first_out + v * lanes < layer.n_out; v++) {
        const std::size_t at = first_out + v * lanes;
        const __mmask16 there = first(layer.n_out - at);
        const __m512 scale = _mm512_loadu_ps(layer.scales + at);
        const __m512 bias = layer.bias ? _mm512_maskz_loadu_ps(there, layer.bias + at) : _mm512_setzero_ps();
        for (std::size_t r = 0; r < n_rows; r++) {
            const __m512 sum = _mm512_fmadd_ps(_mm512_load_ps(sums + r * panel + v * lanes), scale, bias);
            store(activated(sum, layer.activation), out.from(r * layer.n_out + at), there);
        }
    }
}

}  // namespace diptych::avx512_int8
