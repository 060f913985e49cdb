#include "attention.h"

#include <algorithm>

#include "avx512_bf16.h"
#include "cpu.h"

namespace diptych {
namespace {

namespace kernel = avx512_bf16;

// A segment of one head: where its first row stands, and its packed keys and values in the scratch memory.
struct Part {
    std::size_t row, length, head;
    kernel::bf16 *keys, *values;
};

// Some query rows of a part.
struct Block {
    const Part* part;
    std::size_t start;
};

std::size_t packed_size(std::size_t length, std::size_t dim) {
    return kernel::keys_size(length, dim) + kernel::values_size(length, dim);
}

std::vector<Part> parts(const std::vector<Span>& spans, std::size_t n_head, std::size_t dim, void* scratch) {
    std::vector<Part> out;
    std::size_t row = 0;
    auto* free = static_cast<kernel::bf16*>(scratch);
    for (const Span& span : spans)
        for (std::size_t segment = 0; segment < span.count; segment++, row += span.length)
            for (std::size_t head = 0; head < n_head; head++) {
                kernel::bf16* values = free + kernel::keys_size(span.length, dim);
                out.push_back({row, span.length, head, free, values});
                free = values + kernel::values_size(span.length, dim);
            }
    return out;
}

std::vector<Block> blocks(const std::vector<Part>& parts) {
    std::vector<Block> out;
    for (const Part& part : parts)
        for (std::size_t start = 0; start < part.length; start += kernel::query_block) out.push_back({&part, start});
    return out;
}

}  // namespace

bool attention_supported() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

std::size_t attention_scratch(const std::vector<Span>& spans, std::size_t n_head, std::size_t dim) {
    std::size_t numbers = 0;
    for (const Span& span : spans) numbers += span.count * n_head * packed_size(span.length, dim);
    return numbers * sizeof(kernel::bf16);
}

void attention(const Rows& rows, const std::vector<Span>& spans, float scale, void* scratch, const Parallel& parallel) {
    const std::size_t stride = rows.n_head * rows.dim;
    const std::vector<Part> all = parts(spans, rows.n_head, rows.dim, scratch);
    parallel(all.size(), [&](std::size_t i) {
        const Part& part = all[i];
        const std::size_t at = part.row * stride + part.head * rows.dim;
        kernel::pack_keys(rows.keys + at, stride, part.length, rows.dim, part.keys);
        kernel::pack_values(rows.values + at, stride, part.length, rows.dim, part.values);
    });
    const std::vector<Block> work = blocks(all);
    parallel(work.size(), [&](std::size_t i) {
        const Part& part = *work[i].part;
        const std::size_t at = (part.row + work[i].start) * stride + part.head * rows.dim;
        const std::size_t n_rows = std::min(kernel::query_block, part.length - work[i].start);
        kernel::attend(rows.queries + at, rows.out + at, stride, n_rows, rows.dim, part.keys, part.values, part.length,
                       scale);
    });
}

}  // namespace diptych
