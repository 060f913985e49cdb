// Functions of sixteen numbers at once. Only files that are compiled for AVX-512 include this.
#pragma once

#include <immintrin.h>

#include <cstddef>

namespace diptych {

constexpr float log2_e = 1.44269504f;

// The first n of sixteen numbers.
inline __mmask16 first(std::size_t n) { return n >= 16 ? 0xffff : static_cast<__mmask16>((1u << n) - 1); }

// bfloat16 → float32.
inline __m512 widened(__m256i narrow) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
}

// 2^x to within 3e-6 of it: a polynomial for what is left beside the nearest whole number, with the least greatest
// relative error over [-0.5, 0.5].
inline __m512 exp2(__m512 x) {
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 rest = _mm512_sub_ps(x, whole);
    __m512 y = _mm512_set1_ps(0.00958285256f);
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(0.0559064279f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(0.240240986f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(0.693124193f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, whole);
}

// 1 / (1 + e^-x)
inline __m512 sigmoid(__m512 x) {
    const __m512 one = _mm512_set1_ps(1);
    return _mm512_div_ps(one, _mm512_add_ps(one, exp2(_mm512_mul_ps(x, _mm512_set1_ps(-log2_e)))));
}

}  // namespace diptych
