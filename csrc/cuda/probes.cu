#include <algorithm>
#include <limits>

#include "cuda/device.hpp"
#include "cuda/probes.hpp"
#include "nfd_fast/config.hpp"
#include "nfd_fast/elementary.hpp"

namespace nfd_fast::cuda {
namespace {

constexpr int kRounds = 12;

// Seconds of the fastest of some rounds; the first ones also warm up.
template <class Work>
double best_seconds(const Stream& stream, Work work) {
    Stopwatch watch;
    double best = std::numeric_limits<double>::infinity();
    for (int round = 0; round < kRounds; ++round) {
        watch.time(stream.get(), work);
        best = std::min(best, watch.milliseconds() / 1000);
    }
    return best;
}

// Chains of dependent operations that a thread has under way at once.
constexpr int kChains = 8;
constexpr int kRepeats = 16;  // in one round of the loop, so that the loop itself doesn't count
constexpr int kThreads = 256;
constexpr int kBlocks = 32;  // per multiprocessor, one after the other

template <class T>
__global__ void __launch_bounds__(kThreads) multiply_add_kernel(int rounds, T factor, T* out) {
    T sums[kChains];
    NFD_FAST_UNROLL
    for (int i = 0; i < kChains; ++i) sums[i] = static_cast<T>(threadIdx.x + i);
    for (int round = 0; round < rounds; ++round) {
        NFD_FAST_UNROLL
        for (int repeat = 0; repeat < kRepeats; ++repeat) {
            NFD_FAST_UNROLL
            for (int i = 0; i < kChains; ++i) sums[i] = fused_multiply_add(sums[i], factor, factor);
        }
    }
    T sum = 0;
    NFD_FAST_UNROLL
    for (int i = 0; i < kChains; ++i) sum += sums[i];
    if (sum == T(-1)) *out = sum;  // never, but the compiler doesn't know
}

}  // namespace

double copy_rate(std::int64_t bytes) {
    const Stream stream;
    const auto size = static_cast<std::size_t>(bytes);
    const DeviceBlock from = take_device(static_cast<double>(bytes));
    const DeviceBlock to = take_device(static_cast<double>(bytes));
    check(cudaMemsetAsync(from.get(), 0, size, stream.get()), "clearing memory");
    const double seconds = best_seconds(stream, [&] {
        check(cudaMemcpyAsync(to.get(), from.get(), size, cudaMemcpyDefault, stream.get()),
              "a copy");
    });
    return 2 * static_cast<double>(bytes) / seconds;
}

double write_rate(std::int64_t bytes) {
    const Stream stream;
    const DeviceBlock to = take_device(static_cast<double>(bytes));
    const double seconds = best_seconds(stream, [&] {
        check(cudaMemsetAsync(to.get(), 0, static_cast<std::size_t>(bytes), stream.get()),
              "clearing memory");
    });
    return static_cast<double>(bytes) / seconds;
}

template <class T>
double multiply_add_rate(int rounds) {
    const Stream stream;
    const DeviceBlock out = take_device(sizeof(T));
    int device = 0;
    cudaDeviceProp properties;
    check(cudaGetDevice(&device), "cudaGetDevice");
    check(cudaGetDeviceProperties(&properties, device), "a question about the device");
    const int blocks = kBlocks * properties.multiProcessorCount;
    const double seconds = best_seconds(stream, [&] {
        launch(multiply_add_kernel<T>, dim3(static_cast<unsigned>(blocks)), kThreads, 0,
               stream.get(), false, rounds, T(0.5), reinterpret_cast<T*>(out.get()));
    });
    return 2.0 * kChains * kRepeats * rounds * blocks * kThreads / seconds;
}

template double multiply_add_rate<float>(int);
template double multiply_add_rate<double>(int);

}  // namespace nfd_fast::cuda
