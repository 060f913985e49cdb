// Diptych's operators for ONNX Runtime, in the domain "diptych".
//
//   Attention (queries, keys, values (n, num_heads * dim), spans (n_span, 2), cos, sin (n, dim / 2), optional)
//           -> (n, num_heads * dim), which may stand where the queries stood
//       softmax(scale * queries keys^T) values within each segment, queries and keys turned by their angles before; a
//       row (count, length) of spans stands for the next `count` segments of `length` rows. Attributes: num_heads,
//       scale.
//   Linear, LinearToBFloat16 (x (n, in), norm, shift of the norm (in,), optional, layer, added (n, out), optional)
//           -> (n, out), which may stand where `added` stood
//       activation(norm(x) weights^T + bias) + added. Attributes: epsilon, out, activation.
//   Mlp, MlpToFloat16 (x (n, in), norm, shift of the norm (in,), optional, layer, layer or nothing, layer)
//           -> (n, out), which may stand where x stood if that is added
//       down(up(norm(x))), or down(gate(norm(x)) * up(norm(x))), for the layers up, gate and down. Attributes: epsilon,
//       inner, out, activation, which is the gate's where there is one, and add, 1 where x is added.
//   Interpolated (x (n, width), table (rows, width), taps, shares (n, m)) -> (n, width), which may stand where x stood
//       x + sum over j of shares[:, j] * table[taps[:, j]].
//
// A layer is weights, scales and shift as avx512_int8.h has them, and a bias (out,), optional. Queries, keys and values
// are bfloat16, the x of layers is that or float32, spans and taps int64, weights int8, shift int32, all else is
// float32.

#include <algorithm>

#include "attention.h"
#include "avx512_bf16.h"
#include "linear.h"
#include "onnxruntime_op.h"

namespace {

using namespace diptych;
using onnx::require;
using onnx::Takes;

std::vector<Span> spans(const onnx::Input& given, std::size_t n_rows) {
    require(given.shape.size() == 2 && given.shape[1] == 2, "diptych.Attention: spans are (n, 2)");
    std::vector<Span> out;
    std::size_t left = n_rows;
    for (std::int64_t i = 0; i < given.shape[0]; i++) {
        const std::int64_t count = given.numbers<std::int64_t>()[2 * i],
                           length = given.numbers<std::int64_t>()[2 * i + 1];
        require(count >= 0 && length >= 0, "diptych.Attention: spans count segments and rows");
        if (count == 0 || length == 0) continue;
        require(static_cast<std::size_t>(count) <= left / static_cast<std::size_t>(length),
                "diptych.Attention: spans reach beyond the rows");
        out.push_back({static_cast<std::size_t>(count), static_cast<std::size_t>(length)});
        left -= out.back().count * out.back().length;
    }
    require(left == 0, "diptych.Attention: spans leave out the last rows");
    return out;
}

class Attention {
 public:
    static constexpr const char* name = "Attention";
    static constexpr Takes inputs[] = {
        {ONNX_BFLOAT16},           {ONNX_BFLOAT16}, {ONNX_BFLOAT16}, {ONNX_INT64}, {ONNX_FLOAT, ORT_OPTIONAL},
        {ONNX_FLOAT, ORT_OPTIONAL}};
    static constexpr ONNXTensorElementDataType output = ONNX_BFLOAT16;
    static constexpr int in_place = 0;

    explicit Attention(const onnx::Attributes& attributes)
        : n_head_(static_cast<std::size_t>(attributes.whole("num_heads"))), scale_(attributes.number("scale")) {
        require(attributes.whole("num_heads") > 0 && scale_ > 0,
                "diptych.Attention: num_heads and scale are above zero");
        require(attention_supported(), "diptych.Attention: this CPU has no AVX-512 BF16");
    }

    void compute(const onnx::Context& context) const {
        const onnx::Input queries = context.input(0), keys = context.input(1), values = context.input(2),
                          cos = context.input(4), sin = context.input(5);
        const onnx::Shape& shape = queries.shape;
        require(shape.size() == 2 && keys.shape == shape && values.shape == shape,
                "diptych.Attention: queries, keys and values are of one shape (n, width)");
        const auto n = static_cast<std::size_t>(shape[0]), width = static_cast<std::size_t>(shape[1]);
        const std::size_t dim = width / n_head_;
        require(dim * n_head_ == width && dim > 0 && dim <= avx512_bf16::max_dim,
                "diptych.Attention: num_heads heads of 1 to 256 numbers make the width");
        const onnx::Shape turned = onnx::shaped({n, dim / 2});
        require(!cos.data ? !sin.data : sin.data && dim % 2 == 0 && cos.shape == turned && sin.shape == turned,
                "diptych.Attention: cos and sin are both (n, dim / 2) for an even dim, or neither is there");
        const std::vector<Span> segments = spans(context.input(3), n);
        void* out = context.output(shape);
        if (segments.empty()) return;
        const Attended rows{queries.numbers<bf16>(),
                            keys.numbers<bf16>(),
                            values.numbers<bf16>(),
                            cos.numbers<float>(),
                            sin.numbers<float>(),
                            static_cast<bf16*>(out),
                            n_head_,
                            dim};
        attention(rows, segments, scale_, context.scratch(attention_scratch(segments, n_head_, dim)).get(),
                  context.parallel());
    }

 private:
    std::size_t n_head_;
    float scale_;
};

namespace kernel = avx512_int8;

constexpr Takes any{ONNX_ANY}, maybe{ONNX_FLOAT, ORT_OPTIONAL}, weights{ONNX_INT8}, scales{ONNX_FLOAT},
    shift{ONNX_INT32}, maybe_weights{ONNX_INT8, ORT_OPTIONAL}, maybe_shift{ONNX_INT32, ORT_OPTIONAL};

kernel::Activation activation(const onnx::Attributes& attributes) {
    using kernel::Activation;
    const std::string name = attributes.text("activation");
    if (name == "gelu") return Activation::gelu;
    if (name == "gelu_tanh") return Activation::gelu_tanh;
    if (name == "quick_gelu") return Activation::quick_gelu;
    if (name == "silu") return Activation::silu;
    require(name == "none", "diptych: activation is none, gelu, gelu_tanh, quick_gelu or silu");
    return Activation::none;
}

// The first three inputs of both operators with layers.
Rows rows(const onnx::Context& context, float eps) {
    const onnx::Input x = context.input(0), weight = context.input(1), bias = context.input(2);
    require(x.shape.size() == 2 && (x.type == ONNX_FLOAT || x.type == ONNX_BFLOAT16),
            "diptych: x is (n, in) of float32 or bfloat16");
    const onnx::Shape width{x.shape[1]};
    require((!weight.data || weight.shape == width) && (!bias.data || (weight.data && bias.shape == width)),
            "diptych: the norm is (in,), and so is its shift");
    const bool narrow = x.type == ONNX_BFLOAT16;
    return {narrow ? nullptr : x.numbers<float>(),
            narrow ? x.numbers<bf16>() : nullptr,
            static_cast<std::size_t>(x.shape[0]),
            static_cast<std::size_t>(x.shape[1]),
            {weight.numbers<float>(), bias.numbers<float>(), eps}};
}

// The layer in the four inputs from `first` on.
kernel::Layer layer(const onnx::Context& context, std::size_t first, std::size_t n_in, std::size_t n_out,
                    kernel::Activation activation) {
    const onnx::Input packed = context.input(first), scales = context.input(first + 1),
                      shift = context.input(first + 2), bias = context.input(first + 3);
    const std::size_t outs = kernel::padded_outs(n_out), panels = outs / kernel::panel;
    require(packed.data && scales.data && shift.data, "diptych: a layer has weights, scales and shift");
    require(packed.shape == onnx::shaped({panels, kernel::padded(n_in) / 4, kernel::panel, 4}) &&
                scales.shape == onnx::shaped({outs}) && shift.shape == onnx::shaped({kernel::groups(n_in), outs}),
            "diptych: weights, scales and shift are not of this layer");
    require(!bias.data || bias.shape == onnx::shaped({n_out}), "diptych: bias is (out,)");
    return {packed.numbers<std::int8_t>(),
            scales.numbers<float>(),
            shift.numbers<std::int32_t>(),
            bias.numbers<float>(),
            n_in,
            n_out,
            activation};
}

template <kernel::Into into>
class Linear {
 public:
    static constexpr const char* name = into == kernel::Into::narrow ? "LinearToBFloat16" : "Linear";
    static constexpr Takes inputs[] = {any, maybe, maybe, weights, scales, shift, maybe, maybe};
    static constexpr ONNXTensorElementDataType output = into == kernel::Into::narrow ? ONNX_BFLOAT16 : ONNX_FLOAT;
    static constexpr int in_place = 7;

    explicit Linear(const onnx::Attributes& attributes)
        : eps_(attributes.number("epsilon")), n_out_(attributes.size("out")), activation_(activation(attributes)) {
        require(linear_supported(), "diptych.Linear: this CPU has no AVX-512 VNNI");
    }

    void compute(const onnx::Context& context) const {
        const Rows x = rows(context, eps_);
        const kernel::Layer made = layer(context, 3, x.width, n_out_, activation_);
        const onnx::Input added = context.input(7);
        require(!added.data || added.shape == onnx::shaped({x.n, n_out_}), "diptych.Linear: what is added is (n, out)");
        void* out = context.output(onnx::shaped({x.n, n_out_}));
        if (x.n == 0) return;
        linear(x, made, {into, out, added.numbers<float>()}, context.scratch(linear_scratch(x.width)).get(),
               context.parallel());
    }

 private:
    float eps_;
    std::size_t n_out_;
    kernel::Activation activation_;
};

template <kernel::Into into>
class Mlp {
 public:
    static constexpr const char* name = into == kernel::Into::half ? "MlpToFloat16" : "Mlp";
    static constexpr int first_of_up = 3, first_of_gate = 7, first_of_down = 11;
    static constexpr Takes inputs[] = {any,   maybe,       maybe, weights, scales, shift, maybe, maybe_weights,
                                       maybe, maybe_shift, maybe, weights, scales, shift, maybe};
    static constexpr ONNXTensorElementDataType output = into == kernel::Into::half ? ONNX_FLOAT16 : ONNX_FLOAT;
    static constexpr int in_place = 0;

    explicit Mlp(const onnx::Attributes& attributes)
        : eps_(attributes.number("epsilon")),
          n_inner_(attributes.size("inner")),
          n_out_(attributes.size("out")),
          adds_(attributes.whole("add")),
          activation_(activation(attributes)) {
        require(linear_supported(), "diptych.Mlp: this CPU has no AVX-512 VNNI");
    }

    void compute(const onnx::Context& context) const {
        const Rows x = rows(context, eps_);
        const bool gated = context.input(first_of_gate).data;
        const auto none = kernel::Activation::none;
        const kernel::Layer up = layer(context, first_of_up, x.width, n_inner_, gated ? none : activation_);
        const kernel::Layer gate = gated ? layer(context, first_of_gate, x.width, n_inner_, activation_) : up;
        const kernel::Layer down = layer(context, first_of_down, n_inner_, n_out_, none);
        require(!adds_ || (x.wide && x.width == n_out_),
                "diptych.Mlp: x that is added is float32, as wide as the output");
        const kernel::Out out{into, context.output(onnx::shaped({x.n, n_out_})), adds_ ? x.wide : nullptr};
        if (x.n == 0) return;
        mlp(x, up, gated ? &gate : nullptr, down, out, context.scratch(mlp_scratch(x.width, n_inner_)).get(),
            context.parallel());
    }

 private:
    float eps_;
    std::size_t n_inner_, n_out_;
    bool adds_;
    kernel::Activation activation_;
};

class Interpolated {
 public:
    static constexpr const char* name = "Interpolated";
    static constexpr Takes inputs[] = {{ONNX_FLOAT}, {ONNX_FLOAT}, {ONNX_INT64}, {ONNX_FLOAT}};
    static constexpr ONNXTensorElementDataType output = ONNX_FLOAT;
    static constexpr int in_place = 0;

    explicit Interpolated(const onnx::Attributes&) {}

    void compute(const onnx::Context& context) const {
        const onnx::Input x = context.input(0), table = context.input(1), taps = context.input(2),
                          shares = context.input(3);
        require(x.shape.size() == 2 && table.shape.size() == 2 && taps.shape.size() == 2 &&
                    table.shape[1] == x.shape[1] && taps.shape[0] == x.shape[0] && shares.shape == taps.shape,
                "diptych.Interpolated: x is (n, width), the table (rows, width), taps and shares are (n, m)");
        const auto n = static_cast<std::size_t>(x.shape[0]), width = static_cast<std::size_t>(x.shape[1]),
                   n_taps = static_cast<std::size_t>(taps.shape[1]);
        const auto* tap = taps.numbers<std::int64_t>();
        require(std::all_of(tap, tap + n * n_taps, [&](auto row) { return row >= 0 && row < table.shape[0]; }),
                "diptych.Interpolated: taps are rows of the table");
        auto* out = static_cast<float*>(context.output(x.shape));
        context.parallel()((n + row_block - 1) / row_block, [&](std::size_t block) {
            for (std::size_t row = block * row_block; row < std::min(n, (block + 1) * row_block); row++) {
                float* to = out + row * width;
                std::copy_n(x.numbers<float>() + row * width, to == x.numbers<float>() + row * width ? 0 : width, to);
                for (std::size_t j = row * n_taps; j < (row + 1) * n_taps; j++) {
                    const float* from = table.numbers<float>() + static_cast<std::size_t>(tap[j]) * width;
                    for (std::size_t i = 0; i < width; i++) to[i] += shares.numbers<float>()[j] * from[i];
                }
            }
        });
    }

 private:
    static constexpr std::size_t row_block = 256;
};

// Made once, since sessions that use them may live until the process ends.
OrtCustomOpDomain* domain(const OrtApi& api) {
    static const OrtCustomOp ops[] = {onnx::described<Attention>(),
                                      onnx::described<Linear<kernel::Into::wide>>(),
                                      onnx::described<Linear<kernel::Into::narrow>>(),
                                      onnx::described<Mlp<kernel::Into::wide>>(),
                                      onnx::described<Mlp<kernel::Into::half>>(),
                                      onnx::described<Interpolated>()};
    static OrtCustomOpDomain* const made = [&] {
        OrtCustomOpDomain* out = nullptr;
        onnx::check(api.CreateCustomOpDomain("diptych", &out));
        for (const OrtCustomOp& op : ops) onnx::check(api.CustomOpDomain_Add(out, &op));
        return out;
    }();
    return made;
}

}  // namespace

// Compute on at most n threads from now on, in all sessions; with 0 on all they have.
extern "C" __attribute__((visibility("default"))) void diptych_use_threads(std::size_t n) {
    onnx::most_threads = n ? n : std::numeric_limits<std::size_t>::max();
}

// What ONNX Runtime calls in a library of operators.
extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const OrtApiBase* base) {
    const OrtApi* api = base->GetApi(ORT_API);
    if (!api) return base->GetApi(1)->CreateStatus(ORT_FAIL, "Diptych's operators need ONNX Runtime 1.18 or newer");
    return onnx::guarded(*api, [&] { onnx::check(api->AddCustomOpDomain(options, domain(*api))); });
}
