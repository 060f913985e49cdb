#include "linear.h"

#include <algorithm>
#include <vector>

#include "cpu.h"

namespace diptych {
namespace {

namespace kernel = avx512_int8;

constexpr std::size_t band = 16 * kernel::row_block;  // rows that go through all steps together
constexpr std::size_t panels_a_task = 4;

constexpr std::size_t parts(std::size_t n, std::size_t of) { return (n + of - 1) / of; }

constexpr std::size_t aligned(std::size_t n_bytes) { return parts(n_bytes, 64) * 64; }

// Rows of int8 numbers and their scales, as they stand in scratch memory.
struct Quantised {
    std::uint8_t* numbers;
    float* scales;

    static std::size_t size(std::size_t width) {
        return aligned(band * kernel::groups(width) * sizeof(float)) + aligned(band * kernel::padded(width));
    }

    Quantised(void* memory, std::size_t width)
        : numbers(static_cast<std::uint8_t*>(memory) + aligned(band * kernel::groups(width) * sizeof(float))),
          scales(static_cast<float*>(memory)) {}
};

// Quantise n rows from row `first` on.
void quantise(const Rows& x, std::size_t first, std::size_t n, const Quantised& to, const Parallel& parallel) {
    parallel(parts(n, kernel::row_block), [&](std::size_t block) {
        std::vector<float> room(x.narrow || x.norm.weight ? x.width : 0);
        for (std::size_t row = block * kernel::row_block; row < std::min(n, (block + 1) * kernel::row_block); row++) {
            const std::size_t at = (first + row) * x.width;
            const float* from = x.wide + (x.narrow ? 0 : at);
            if (x.narrow) kernel::widen(x.narrow + at, x.width, room.data()), from = room.data();
            if (x.norm.weight) {
                kernel::normalise(from, x.width, x.norm.weight, x.norm.bias, x.norm.eps, room.data());
                from = room.data();
            }
            kernel::quantise(from, x.width, to.numbers + row * kernel::padded(x.width),
                             to.scales + row * kernel::groups(x.width));
        }
    });
}

// Put n quantised rows through a layer.
void multiply(const Quantised& x, std::size_t n, const kernel::Layer& layer, kernel::Out out,
              const Parallel& parallel) {
    const std::size_t n_panels = parts(layer.n_out, kernel::panel), turns = parts(n_panels, panels_a_task);
    parallel(parts(n, kernel::row_block) * turns, [&](std::size_t task) {
        const std::size_t start = task / turns * kernel::row_block, turn = task % turns;
        const std::size_t n_rows = std::min(kernel::row_block, n - start);
        for (std::size_t panel = turn * panels_a_task; panel < std::min(n_panels, (turn + 1) * panels_a_task); panel++)
            kernel::multiply(x.numbers + start * kernel::padded(layer.n_in),
                             x.scales + start * kernel::groups(layer.n_in), n_rows, layer, panel,
                             out.from(start * layer.n_out));
    });
}

}  // namespace

bool linear_supported() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }

std::size_t linear_scratch(std::size_t n_in) { return Quantised::size(n_in); }

std::size_t mlp_scratch(std::size_t n_in, std::size_t n_inner) {
    return Quantised::size(n_in) + Quantised::size(n_inner) + band * n_inner * sizeof(float);
}

void linear(const Rows& x, const kernel::Layer& layer, kernel::Out out, void* scratch, const Parallel& parallel) {
    const Quantised quantised(scratch, x.width);
    for (std::size_t first = 0; first < x.n; first += band) {
        const std::size_t n = std::min(band, x.n - first);
        quantise(x, first, n, quantised, parallel);
        multiply(quantised, n, layer, out.from(first * layer.n_out), parallel);
    }
}

void mlp(const Rows& x, const kernel::Layer& up, const kernel::Layer* gate, const kernel::Layer& down, kernel::Out out,
         void* scratch, const Parallel& parallel) {
    auto* memory = static_cast<char*>(scratch);
    const Quantised outer(memory, x.width), inner(memory += Quantised::size(x.width), up.n_out);
    auto* between = reinterpret_cast<float*>(memory + Quantised::size(up.n_out));
    for (std::size_t first = 0; first < x.n; first += band) {
        const std::size_t n = std::min(band, x.n - first);
        quantise(x, first, n, outer, parallel);
        if (gate) multiply(outer, n, *gate, {kernel::Into::wide, between}, parallel);
        multiply(outer, n, up, {gate ? kernel::Into::product : kernel::Into::wide, between}, parallel);
        quantise({between, nullptr, n, up.n_out, {}}, 0, n, inner, parallel);
        multiply(inner, n, down, out.from(first * down.n_out), parallel);
    }
}

}  // namespace diptych
