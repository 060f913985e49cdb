#include "attention.h"

#include <algorithm>

#include "avx512_bf16.h"
#include "cpu.h"

namespace diptych {
namespace {

namespace kernel = avx512_bf16;

constexpr std::size_t packed_at_once = std::size_t{1} << 24;  // numbers of keys and values, but for a longer segment

// A segment of one head: where its first row stands, and its packed keys and values in the scratch memory.
struct Part {
    std::size_t row, length, head;
    bf16 *keys, *values;
};

// Some query rows of a part.
struct Block {
    const Part* part;
    std::size_t start;
};

std::size_t packed_size(std::size_t length, std::size_t dim) {
    return kernel::keys_size(length, dim) + kernel::values_size(length, dim);
}

std::vector<Block> blocks(const std::vector<Part>& parts) {
    std::vector<Block> out;
    for (const Part& part : parts)
        for (std::size_t start = 0; start < part.length; start += kernel::query_block) out.push_back({&part, start});
    return out;
}

void attend(const Attended& rows, const std::vector<Part>& parts, float scale, const Parallel& parallel) {
    const std::size_t stride = rows.n_head * rows.dim;
    const auto at = [&](const Part& part, std::size_t row) { return (part.row + row) * stride + part.head * rows.dim; };
    const kernel::Angles angles{rows.cos, rows.sin};
    parallel(parts.size(), [&](std::size_t i) {
        const Part& part = parts[i];
        kernel::pack_keys(rows.keys + at(part, 0), angles.from(part.row, rows.dim), stride, part.length, rows.dim,
                          part.keys);
        kernel::pack_values(rows.values + at(part, 0), stride, part.length, rows.dim, part.values);
    });
    const std::vector<Block> work = blocks(parts);
    parallel(work.size(), [&](std::size_t i) {
        const auto& [part, start] = work[i];
        const std::size_t n_rows = std::min(kernel::query_block, part->length - start), from = at(*part, start);
        kernel::attend(rows.queries + from, angles.from(part->row + start, rows.dim), rows.out + from, stride, n_rows,
                       rows.dim, part->keys, part->values, part->length, scale);
    });
}

}  // namespace

bool attention_supported() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

std::size_t attention_scratch(const std::vector<Span>& spans, std::size_t n_head, std::size_t dim) {
    std::size_t all = 0, most = packed_at_once;
    for (const Span& span : spans) {
        all += span.count * n_head * packed_size(span.length, dim);
        most = std::max(most, packed_size(span.length, dim));
    }
    return std::min(all, most) * sizeof(bf16);
}

void attention(const Attended& rows, const std::vector<Span>& spans, float scale, void* scratch,
               const Parallel& parallel) {
    auto* const begin = static_cast<bf16*>(scratch);
    const bf16* const end = begin + attention_scratch(spans, rows.n_head, rows.dim) / sizeof(bf16);
    bf16* free = begin;
    std::vector<Part> parts;  // whose keys and values are packed together
    const auto flush = [&] {
        attend(rows, parts, scale, parallel);
        parts.clear(), free = begin;
    };
    std::size_t row = 0;
    for (const Span& span : spans)
        for (std::size_t segment = 0; segment < span.count; segment++, row += span.length)
            for (std::size_t head = 0; head < rows.n_head; head++) {
                const std::size_t size = packed_size(span.length, rows.dim);
                if (static_cast<std::size_t>(end - free) < size) flush();
                parts.push_back({row, span.length, head, free, free + kernel::keys_size(span.length, rows.dim)});
                free += size;
            }
    flush();
}

}  // namespace diptych
