// The part of ONNX Runtime's C interface that an operator needs, as its binary interface has it since version 1.18.
//
// ONNX Runtime hands out a table of functions that only ever grows at its end, so that a place in it stands for a
// function for good; its Python packages come without the header that names them all.
#pragma once

#include <cstddef>
#include <cstdint>

struct OrtStatus;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;
struct OrtMemoryInfo;
struct OrtAllocator;
struct OrtShapeInferContext;

constexpr std::uint32_t ORT_API = 18;  // the version whose functions and whose OrtCustomOp are written down here

enum OrtErrorCode : int { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };
enum ONNXTensorElementDataType : int {
    ONNX_ANY = 0,
    ONNX_FLOAT = 1,
    ONNX_INT8 = 3,
    ONNX_INT32 = 6,
    ONNX_INT64 = 7,
    ONNX_FLOAT16 = 10,
    ONNX_BFLOAT16 = 16
};
enum OrtAllocatorType : int { ORT_ARENA = 1 };
enum OrtCharacteristic : int { ORT_REQUIRED = 0, ORT_OPTIONAL = 1 };
enum OrtMemType : int { ORT_MEM_DEFAULT = 0 };

struct OrtApi {
    using Function = void (*)();
    Function table[275];

    template <int place, class Result, class... Taken>
    Result call(Taken... taken) const {
        return reinterpret_cast<Result (*)(Taken...)>(table[place])(taken...);
    }

    OrtStatus* CreateStatus(OrtErrorCode code, const char* text) const { return call<0, OrtStatus*>(code, text); }
    OrtStatus* CreateCustomOpDomain(const char* name, OrtCustomOpDomain** out) const {
        return call<26, OrtStatus*>(name, out);
    }
    OrtStatus* CustomOpDomain_Add(OrtCustomOpDomain* domain, const struct OrtCustomOp* op) const {
        return call<27, OrtStatus*>(domain, op);
    }
    OrtStatus* AddCustomOpDomain(OrtSessionOptions* options, OrtCustomOpDomain* domain) const {
        return call<28, OrtStatus*>(options, domain);
    }
    OrtStatus* GetTensorMutableData(OrtValue* value, void** out) const { return call<51, OrtStatus*>(value, out); }
    OrtStatus* GetTensorElementType(const OrtTensorTypeAndShapeInfo* info, ONNXTensorElementDataType* out) const {
        return call<60, OrtStatus*>(info, out);
    }
    OrtStatus* GetDimensionsCount(const OrtTensorTypeAndShapeInfo* info, std::size_t* out) const {
        return call<61, OrtStatus*>(info, out);
    }
    OrtStatus* GetDimensions(const OrtTensorTypeAndShapeInfo* info, std::int64_t* out, std::size_t n) const {
        return call<62, OrtStatus*>(info, out, n);
    }
    OrtStatus* GetTensorTypeAndShape(const OrtValue* value, OrtTensorTypeAndShapeInfo** out) const {
        return call<65, OrtStatus*>(value, out);
    }
    OrtStatus* CreateCpuMemoryInfo(OrtAllocatorType kind, OrtMemType type, OrtMemoryInfo** out) const {
        return call<69, OrtStatus*>(kind, type, out);
    }
    OrtStatus* AllocatorAlloc(OrtAllocator* allocator, std::size_t size, void** out) const {
        return call<75, OrtStatus*>(allocator, size, out);
    }
    OrtStatus* AllocatorFree(OrtAllocator* allocator, void* memory) const {
        return call<76, OrtStatus*>(allocator, memory);
    }
    OrtStatus* KernelInfoGetAttribute_float(const OrtKernelInfo* info, const char* name, float* out) const {
        return call<85, OrtStatus*>(info, name, out);
    }
    OrtStatus* KernelInfoGetAttribute_int64(const OrtKernelInfo* info, const char* name, std::int64_t* out) const {
        return call<86, OrtStatus*>(info, name, out);
    }
    OrtStatus* KernelInfoGetAttribute_string(const OrtKernelInfo* info, const char* name, char* out,
                                             std::size_t* size) const {
        return call<87, OrtStatus*>(info, name, out, size);
    }
    OrtStatus* KernelContext_GetInputCount(const OrtKernelContext* context, std::size_t* out) const {
        return call<88, OrtStatus*>(context, out);
    }
    OrtStatus* KernelContext_GetInput(const OrtKernelContext* context, std::size_t i, const OrtValue** out) const {
        return call<90, OrtStatus*>(context, i, out);
    }
    OrtStatus* KernelContext_GetOutput(OrtKernelContext* context, std::size_t i, const std::int64_t* shape,
                                       std::size_t n, OrtValue** out) const {
        return call<91, OrtStatus*>(context, i, shape, n, out);
    }
    void ReleaseMemoryInfo(OrtMemoryInfo* info) const { call<94, void>(info); }
    void ReleaseTensorTypeAndShapeInfo(OrtTensorTypeAndShapeInfo* info) const { call<99, void>(info); }
    OrtStatus* KernelContext_GetAllocator(const OrtKernelContext* context, const OrtMemoryInfo* info,
                                          OrtAllocator** out) const {
        return call<253, OrtStatus*>(context, info, out);
    }
    OrtStatus* KernelContext_ParallelFor(const OrtKernelContext* context, void (*task)(void*, std::size_t),
                                         std::size_t n_tasks, std::size_t n_batches, void* of_task) const {
        return call<274, OrtStatus*>(context, task, n_tasks, n_batches, of_task);
    }
};

struct OrtApiBase {
    const OrtApi* (*GetApi)(std::uint32_t version);
    const char* (*GetVersionString)();
};

struct OrtCustomOp {
    std::uint32_t version;
    void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
    const char* (*GetName)(const OrtCustomOp*);
    const char* (*GetExecutionProviderType)(const OrtCustomOp*);
    ONNXTensorElementDataType (*GetInputType)(const OrtCustomOp*, std::size_t);
    std::size_t (*GetInputTypeCount)(const OrtCustomOp*);
    ONNXTensorElementDataType (*GetOutputType)(const OrtCustomOp*, std::size_t);
    std::size_t (*GetOutputTypeCount)(const OrtCustomOp*);
    void (*KernelCompute)(void*, OrtKernelContext*);
    void (*KernelDestroy)(void*);
    OrtCharacteristic (*GetInputCharacteristic)(const OrtCustomOp*, std::size_t);
    OrtCharacteristic (*GetOutputCharacteristic)(const OrtCustomOp*, std::size_t);
    OrtMemType (*GetInputMemoryType)(const OrtCustomOp*, std::size_t);
    int (*GetVariadicInputMinArity)(const OrtCustomOp*);
    int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
    int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
    int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
    OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void**);
    OrtStatus* (*KernelComputeV2)(void*, OrtKernelContext*);
    OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
    int (*GetStartVersion)(const OrtCustomOp*);
    int (*GetEndVersion)(const OrtCustomOp*);
    std::size_t (*GetMayInplace)(int** inputs, int** outputs);
    void (*ReleaseMayInplace)(int* inputs, int* outputs);
    std::size_t (*GetAliasMap)(int** inputs, int** outputs);
    void (*ReleaseAliasMap)(int* inputs, int* outputs);
};
