// What kernels ask of the CPU, and of the system that has to keep its registers.
#pragma once

namespace diptych {

// The part of AVX-512 that every kernel is compiled for; what else one needs it asks for itself.
inline bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}

}  // namespace diptych
