// Diptych's operators for ONNX Runtime, in the domain "diptych".
//
//   Attention (queries, keys, values (n, num_heads * dim), spans (n_span, 2)) -> (n, num_heads * dim)
//       softmax(scale * queries keys^T) values within each segment; a row (count, length) of spans stands for the next
//       `count` segments of `length` rows. Attributes: num_heads, scale.
//   Linear (x (n, in), weights, scales, shift, bias (out,), optional) -> (n, out)
//       activation(x weights^T + bias). Weights, scales and shift are as avx512_int8.h has them. Attributes: out,
//       activation.
//
// Spans are int64, weights int8, shift int32, all else is float32.

#include "attention.h"
#include "avx512_bf16.h"
#include "linear.h"
#include "onnxruntime_op.h"

namespace {

using namespace diptych;
using onnx::require;

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
    static constexpr ONNXTensorElementDataType inputs[] = {ONNX_FLOAT, ONNX_FLOAT, ONNX_FLOAT, ONNX_INT64};
    static constexpr std::size_t n_optional = 0;

    explicit Attention(const onnx::Attributes& attributes)
        : n_head_(static_cast<std::size_t>(attributes.whole("num_heads"))), scale_(attributes.number("scale")) {
        require(attributes.whole("num_heads") > 0 && scale_ > 0,
                "diptych.Attention: num_heads and scale are above zero");
        require(attention_supported(), "diptych.Attention: this CPU has no AVX-512 BF16");
    }

    void compute(const onnx::Context& context) const {
        const onnx::Input queries = context.input(0), keys = context.input(1), values = context.input(2);
        const onnx::Shape& shape = queries.shape;
        require(shape.size() == 2 && keys.shape == shape && values.shape == shape,
                "diptych.Attention: queries, keys and values are of one shape (n, width)");
        const std::size_t width = static_cast<std::size_t>(shape[1]), dim = width / n_head_;
        require(dim * n_head_ == width && dim > 0 && dim <= avx512_bf16::max_dim,
                "diptych.Attention: num_heads heads of 1 to 256 numbers make the width");
        const std::vector<Span> segments = spans(context.input(3), static_cast<std::size_t>(shape[0]));
        float* out = context.output(shape);
        if (segments.empty()) return;
        const Rows rows{queries.numbers<float>(), keys.numbers<float>(), values.numbers<float>(), out, n_head_, dim};
        attention(rows, segments, scale_, context.scratch(attention_scratch(segments, n_head_, dim)).get(),
                  context.parallel());
    }

 private:
    std::size_t n_head_;
    float scale_;
};

namespace kernel = avx512_int8;

class Linear {
 public:
    static constexpr const char* name = "Linear";
    static constexpr ONNXTensorElementDataType inputs[] = {ONNX_FLOAT, ONNX_INT8, ONNX_FLOAT, ONNX_INT32, ONNX_FLOAT};
    static constexpr std::size_t n_optional = 1;

    explicit Linear(const onnx::Attributes& attributes)
        : n_out_(static_cast<std::size_t>(attributes.whole("out"))),
          activation_(activation(attributes.text("activation"))) {
        require(attributes.whole("out") > 0, "diptych.Linear: out is above zero");
        require(linear_supported(), "diptych.Linear: this CPU has no AVX-512 VNNI");
    }

    void compute(const onnx::Context& context) const {
        const onnx::Input x = context.input(0), packed = context.input(1), scales = context.input(2),
                          shift = context.input(3), bias = context.input(4);
        require(x.shape.size() == 2, "diptych.Linear: x is (n, in)");
        const auto n_rows = static_cast<std::size_t>(x.shape[0]), n_in = static_cast<std::size_t>(x.shape[1]);
        const std::size_t outs = kernel::padded_outs(n_out_), panels = outs / kernel::panel;
        require(packed.shape == onnx::shaped({panels, kernel::padded(n_in) / 4, kernel::panel, 4}) &&
                    scales.shape == onnx::shaped({outs}) && shift.shape == onnx::shaped({kernel::groups(n_in), outs}),
                "diptych.Linear: weights, scales and shift are not of this layer");
        require(!bias.data || bias.shape == onnx::shaped({n_out_}), "diptych.Linear: bias is (out,)");
        float* out = context.output(onnx::shaped({n_rows, n_out_}));
        if (n_rows == 0) return;
        const kernel::Layer layer{packed.numbers<std::int8_t>(),
                                  scales.numbers<float>(),
                                  shift.numbers<std::int32_t>(),
                                  bias.numbers<float>(),
                                  n_in,
                                  n_out_,
                                  activation_};
        linear(x.numbers<float>(), n_rows, layer, out, context.scratch(linear_scratch(n_rows, n_in)).get(),
               context.parallel());
    }

 private:
    static kernel::Activation activation(const std::string& name) {
        using kernel::Activation;
        if (name == "gelu") return Activation::gelu;
        if (name == "gelu_tanh") return Activation::gelu_tanh;
        if (name == "quick_gelu") return Activation::quick_gelu;
        if (name == "silu") return Activation::silu;
        require(name == "none", "diptych.Linear: activation is none, gelu, gelu_tanh, quick_gelu or silu");
        return Activation::none;
    }

    std::size_t n_out_;
    kernel::Activation activation_;
};

// Made once, since sessions that use them may live until the process ends.
OrtCustomOpDomain* domain(const OrtApi& api) {
    static const OrtCustomOp ops[] = {onnx::described<Attention>(), onnx::described<Linear>()};
    static OrtCustomOpDomain* const made = [&] {
        OrtCustomOpDomain* out = nullptr;
        onnx::check(api.CreateCustomOpDomain("diptych", &out));
        for (const OrtCustomOp& op : ops) onnx::check(api.CustomOpDomain_Add(out, &op));
        return out;
    }();
    return made;
}

}  // namespace

// What ONNX Runtime calls in a library of operators.
extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const OrtApiBase* base) {
    const OrtApi* api = base->GetApi(ORT_API);
    if (!api) return base->GetApi(1)->CreateStatus(ORT_FAIL, "Diptych's operators need ONNX Runtime 1.17 or newer");
    return onnx::guarded(*api, [&] { onnx::check(api->AddCustomOpDomain(options, domain(*api))); });
}
