// What operators for ONNX Runtime share: a class with a constructor from attributes and `compute` becomes an
// OrtCustomOp.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "onnxruntime_api.h"
#include "parallel.h"

namespace diptych::onnx {

// On how many threads operators compute, at most, of those that a session has.
inline std::atomic<std::size_t> most_threads{std::numeric_limits<std::size_t>::max()};

// A status of ONNX Runtime's that says something failed, on its way to ONNX Runtime.
struct Failed {
    OrtStatus* status;
};

inline void check(OrtStatus* status) {
    if (status) throw Failed{status};
}

// For what is wrong with a graph or its inputs.
inline void require(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

// Run `body`, and have what it throws as a status: no exception may cross the C interface.
template <class Body>
OrtStatus* guarded(const OrtApi& api, Body body) {
    try {
        body();
        return nullptr;
    } catch (const Failed& failed) {
        return failed.status;
    } catch (const std::invalid_argument& error) {
        return api.CreateStatus(ORT_INVALID_ARGUMENT, error.what());
    } catch (const std::exception& error) {
        return api.CreateStatus(ORT_FAIL, error.what());
    }
}

using Shape = std::vector<std::int64_t>;

inline Shape shaped(std::initializer_list<std::size_t> sizes) { return Shape(sizes.begin(), sizes.end()); }

struct Input {
    const void* data = nullptr;  // none where an optional input is left out
    ONNXTensorElementDataType type = ONNX_ANY;
    Shape shape;

    template <class Number>
    const Number* numbers() const {
        return static_cast<const Number*>(data);
    }
};

// What an operator takes: the type of an input, and whether it may be left out.
struct Takes {
    ONNXTensorElementDataType type;
    OrtCharacteristic need = ORT_REQUIRED;
};

// One run of an operator.
class Context {
 public:
    Context(const OrtApi& api, OrtKernelContext* context) : api_(api), context_(context) {}

    Input input(std::size_t i) const {
        std::size_t n = 0;
        check(api_.KernelContext_GetInputCount(context_, &n));
        const OrtValue* value = nullptr;
        if (i < n) check(api_.KernelContext_GetInput(context_, i, &value));
        if (!value) return {};
        OrtTensorTypeAndShapeInfo* info = nullptr;
        check(api_.GetTensorTypeAndShape(value, &info));
        const auto release = [this](OrtTensorTypeAndShapeInfo* held) { api_.ReleaseTensorTypeAndShapeInfo(held); };
        const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(release)> released(info, release);
        ONNXTensorElementDataType type = ONNX_ANY;
        check(api_.GetTensorElementType(info, &type));
        std::size_t n_dims = 0;
        check(api_.GetDimensionsCount(info, &n_dims));
        Shape shape(n_dims);
        check(api_.GetDimensions(info, shape.data(), n_dims));
        void* data = nullptr;
        check(api_.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
        return {data, type, shape};
    }

    void* output(const Shape& shape) const {
        OrtValue* value = nullptr;
        check(api_.KernelContext_GetOutput(context_, 0, shape.data(), shape.size(), &value));
        void* data = nullptr;
        check(api_.GetTensorMutableData(value, &data));
        return data;
    }

    // Memory of the session's own, aligned to 64 bytes, that goes back to it.
    std::shared_ptr<void> scratch(std::size_t size) const {
        OrtMemoryInfo* info = nullptr;
        check(api_.CreateCpuMemoryInfo(ORT_ARENA, ORT_MEM_DEFAULT, &info));
        OrtAllocator* allocator = nullptr;
        OrtStatus* status = api_.KernelContext_GetAllocator(context_, info, &allocator);
        api_.ReleaseMemoryInfo(info);
        check(status);
        void* memory = nullptr;
        check(api_.AllocatorAlloc(allocator, size, &memory));
        return {memory, [&api = api_, allocator](void* held) { api.AllocatorFree(allocator, held); }};
    }

    // On the session's threads, one task after the other as they become free.
    // Workers take the next task until none is left, the first of them to the end, the others as long as there is a
    // thread for them.
    Parallel parallel() const {
        return [this](std::size_t n, const std::function<void(std::size_t)>& task) {
            std::atomic<std::size_t> next{0};
            const std::function<void(std::size_t)> work = [&](std::size_t worker) {
                while (worker < most_threads.load(std::memory_order_relaxed)) {
                    const std::size_t i = next.fetch_add(1, std::memory_order_relaxed);
                    if (i >= n) break;
                    task(i);
                }
            };
            if (most_threads == 1) return work(0);  // nobody is woken, to look for work and keep a core from others
            const auto run = [](void* of, std::size_t i) {
                (*static_cast<const std::function<void(std::size_t)>*>(of))(i);
            };
            check(api_.KernelContext_ParallelFor(context_, run, n, n,
                                                 const_cast<void*>(static_cast<const void*>(&work))));
        };
    }

 private:
    const OrtApi& api_;
    OrtKernelContext* context_;
};

// The attributes of a node.
class Attributes {
 public:
    Attributes(const OrtApi& api, const OrtKernelInfo* info) : api_(api), info_(info) {}

    std::int64_t whole(const char* name) const {
        std::int64_t out = 0;
        check(api_.KernelInfoGetAttribute_int64(info_, name, &out));
        return out;
    }
    // A number of things, which is above zero.
    std::size_t size(const char* name) const {
        const std::int64_t out = whole(name);
        require(out > 0, "diptych: the sizes of layers are above zero");
        return static_cast<std::size_t>(out);
    }
    std::string text(const char* name) const {
        std::size_t size = 0;  // with the zero at its end
        check(api_.KernelInfoGetAttribute_string(info_, name, nullptr, &size));
        std::string out(size, '\0');
        check(api_.KernelInfoGetAttribute_string(info_, name, out.data(), &size));
        out.resize(size - 1);
        return out;
    }
    float number(const char* name) const {
        float out = 0;
        check(api_.KernelInfoGetAttribute_float(info_, name, &out));
        return out;
    }

 private:
    const OrtApi& api_;
    const OrtKernelInfo* info_;
};

// An operator as ONNX Runtime takes it. `Kernel` has `name`, what its `inputs` take, the type of its one `output`, the
// number of the input that is `in_place`, where that may stand, a constructor from Attributes, and `compute(Context)`.
template <class Kernel>
OrtCustomOp described() {
    struct Held {
        const OrtApi& api;
        Kernel kernel;
    };
    constexpr std::size_t n_inputs = std::size(Kernel::inputs);
    OrtCustomOp op{};
    op.version = ORT_API;
    op.GetName = [](const OrtCustomOp*) { return Kernel::name; };
    op.GetExecutionProviderType = [](const OrtCustomOp*) { return static_cast<const char*>(nullptr); };  // the CPU's
    op.GetInputType = [](const OrtCustomOp*, std::size_t i) { return Kernel::inputs[i].type; };
    op.GetInputTypeCount = [](const OrtCustomOp*) { return n_inputs; };
    op.GetOutputType = [](const OrtCustomOp*, std::size_t) { return Kernel::output; };
    op.GetOutputTypeCount = [](const OrtCustomOp*) { return std::size_t{1}; };
    op.GetInputCharacteristic = [](const OrtCustomOp*, std::size_t i) { return Kernel::inputs[i].need; };
    op.GetOutputCharacteristic = [](const OrtCustomOp*, std::size_t) { return ORT_REQUIRED; };
    op.GetInputMemoryType = [](const OrtCustomOp*, std::size_t) { return ORT_MEM_DEFAULT; };
    op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 0; };
    op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
    op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 0; };
    op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
    op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
    op.GetEndVersion = [](const OrtCustomOp*) { return std::numeric_limits<int>::max(); };
    op.GetMayInplace = [](int** inputs, int** outputs) {
        static int in = Kernel::in_place, out = 0;
        *inputs = &in, *outputs = &out;
        return std::size_t{1};
    };
    op.ReleaseMayInplace = [](int*, int*) {};
    op.CreateKernelV2 = [](const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** out) {
        return guarded(*api, [&] { *out = new Held{*api, Kernel(Attributes(*api, info))}; });
    };
    op.KernelComputeV2 = [](void* self, OrtKernelContext* context) {
        const auto* held = static_cast<const Held*>(self);
        return guarded(held->api, [&] { held->kernel.compute(Context(held->api, context)); });
    };
    op.KernelDestroy = [](void* self) { delete static_cast<Held*>(self); };
    return op;
}

}  // namespace diptych::onnx
