#include "linear.h"

#include <algorithm>

#include "cpu.h"

namespace diptych {
namespace {

namespace kernel = avx512_int8;

constexpr std::size_t panels_a_task = 4;

constexpr std::size_t parts(std::size_t n, std::size_t of) { return (n + of - 1) / of; }

}  // namespace

bool linear_supported() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }

std::size_t linear_scratch(std::size_t n_rows, std::size_t n_in) {
    return n_rows * (kernel::groups(n_in) * sizeof(float) + kernel::padded(n_in));
}

void linear(const float* x, std::size_t n_rows, const kernel::Layer& layer, float* out, void* scratch,
            const Parallel& parallel) {
    const std::size_t n_in = layer.n_in, n_groups = kernel::groups(n_in), row = kernel::padded(n_in);
    auto* scales = static_cast<float*>(scratch);
    auto* numbers = reinterpret_cast<std::uint8_t*>(scales + n_rows * n_groups);
    const std::size_t n_blocks = parts(n_rows, kernel::row_block), n_panels = parts(layer.n_out, kernel::panel);
    const std::size_t turns = parts(n_panels, panels_a_task);
    const auto rows_of = [&](std::size_t block) {
        return std::min(kernel::row_block, n_rows - block * kernel::row_block);
    };
    parallel(n_blocks, [&](std::size_t block) {
        const std::size_t start = block * kernel::row_block;
        for (std::size_t i = start; i < start + rows_of(block); i++)
            kernel::quantise(x + i * n_in, n_in, numbers + i * row, scales + i * n_groups);
    });
    parallel(n_blocks * turns, [&](std::size_t task) {
        const std::size_t block = task / turns, turn = task % turns, start = block * kernel::row_block;
        for (std::size_t panel = turn * panels_a_task; panel < std::min(n_panels, (turn + 1) * panels_a_task); panel++)
            kernel::multiply(numbers + start * row, scales + start * n_groups, rows_of(block), layer, panel,
                             out + start * layer.n_out);
    });
}

}  // namespace diptych
