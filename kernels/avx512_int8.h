// Linear layers in int8 products with int32 sums, for x86 CPUs that have AVX-512 VNNI.
//
// Activations are quantised while the graph runs, symmetric about zero, with a scale for each group of a row, so that
// one large number costs its neighbours alone their precision. The instruction multiplies unsigned by signed numbers:
// activations are shifted by 128, and sums begin with what takes that back.
#pragma once

#include <cstddef>
#include <cstdint>

#include "bf16.h"

namespace diptych::avx512_int8 {

constexpr std::size_t panel = 64;      // outputs whose weights stand together
constexpr std::size_t group = 256;     // inputs to a scale of the activations
constexpr std::size_t row_block = 48;  // rows that pass over a panel together

constexpr std::size_t padded(std::size_t n_in) { return (n_in + 3) / 4 * 4; }
constexpr std::size_t padded_outs(std::size_t n_out) { return (n_out + panel - 1) / panel * panel; }
constexpr std::size_t groups(std::size_t n_in) { return (n_in + group - 1) / group; }

// What a layer's outputs go through.
enum class Activation { none, gelu, gelu_tanh, quick_gelu, silu };

// A layer: its weights as `graph/int8.py` packs them, for outputs padded to whole panels with zeros.
struct Layer {
    const std::int8_t* packed;  // (n_panel, padded(n_in) / 4, panel, 4)
    const float* scales;        // (n_panel * panel,): what one of an output's int8 numbers stands for
    const std::int32_t* shift;  // (groups(n_in), n_panel * panel): -128 times the sum of a group's weights
    const float* bias;          // (n_out,), or none
    std::size_t n_in, n_out;
    Activation activation;
};

// Where outputs go, with `added`, if there is any: float32, bfloat16, float16, or times the float32 that are there.
// What is added may stand where float32 goes.
enum class Into { wide, narrow, half, product };

struct Out {
    Into into;
    void* numbers;
    const float* added = nullptr;

    // That of the outputs from the n-th on.
    Out from(std::size_t n) const {
        const std::size_t size = into == Into::narrow || into == Into::half ? sizeof(bf16) : sizeof(float);
        return {into, static_cast<char*>(numbers) + n * size, added ? added + n : nullptr};
    }
};

// bfloat16 → float32.
void widen(const bf16* row, std::size_t n, float* out);

// row → (row - mean) / sqrt(variance + eps) * weight + bias, or without a bias row / sqrt(mean square + eps) * weight;
// out may be the row.
void normalise(const float* row, std::size_t n, const float* weight, const float* bias, float eps, float* out);

// A row of n_in numbers → padded(n_in) numbers about 128, and the scale of each group.
void quantise(const float* row, std::size_t n_in, std::uint8_t* numbers, float* scales);

// out (n_rows, n_out) for the outputs of one panel; rows of numbers and scales follow each other; n_rows <= row_block.
void multiply(const std::uint8_t* numbers, const float* scales, std::size_t n_rows, const Layer& layer,
              std::size_t at_panel, Out out);

}  // namespace diptych::avx512_int8
