// The most products a second that the machine's AVX-512 units can do, with everything in registers.
//
//     c++ -O3 -march=native -pthread benchmarks/peak.cpp -o peak && ./peak
//
// An operation is a multiplication or an addition: a product of matrices (m, k) and (k, n) is 2 m k n of them. GCC has to
// unroll the loop over the sums, which -O3 does; without that the figure is the memory's.

#include <immintrin.h>

#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

constexpr int n_sums = 12;  // as many as hide the time that one product takes
constexpr long n_rounds = 100'000'000;

template <class Sum, class Step>
double giga_operations(int per_step, Sum zero, Step step) {
    const unsigned n_threads = std::thread::hardware_concurrency();
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < n_threads; i++)
        threads.emplace_back([=] {
            Sum sums[n_sums];
            for (Sum& sum : sums) sum = zero;
            for (long round = 0; round < n_rounds; round++) {
                for (Sum& sum : sums) sum = step(sum);
                for (Sum& sum : sums) asm volatile("" : "+v"(sum));  // so that no round is left out
            }
        });
    for (std::thread& thread : threads) thread.join();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    return 1e-9 * n_threads * n_rounds * n_sums * per_step / seconds.count();
}

int main() {
    const __m512 one = _mm512_set1_ps(1e-9f);
    const __m512i zeros = _mm512_setzero_si512();
    std::printf("%u threads\n", std::thread::hardware_concurrency());
    std::printf("f32   %5.0f giga-operations a second\n",
                giga_operations(32, one, [=](__m512 sum) { return _mm512_fmadd_ps(one, one, sum); }));
    std::printf("bf16  %5.0f\n",
                giga_operations(64, one, [=](__m512 sum) { return _mm512_dpbf16_ps(sum, (__m512bh)zeros, (__m512bh)zeros); }));
    std::printf("int8  %5.0f\n",
                giga_operations(128, zeros, [=](__m512i sum) { return _mm512_dpbusd_epi32(sum, zeros, zeros); }));
}
