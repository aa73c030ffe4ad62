#include <algorithm>

#include "cuda/device.hpp"
#include "cuda/euler_maruyama.hpp"
#include "cuda/noise_block.hpp"
#include "nfd_fast/elementary.hpp"

namespace nfd_fast::cuda {
namespace {

constexpr int kThreads = 256;
// Samples that a thread has in registers, for the four neurons of a Philox block. Terms are read,
// and noise is drawn, once for so many.
constexpr int kSamples = 8;
constexpr std::int64_t kMostGroups = 65535;  // along the second axis of a grid

// The sums of some samples, of neurons `first` and after.
template <class T>
struct Sums {
    std::int64_t samples;
    T of[kSamples][4];

    // `coefficients` of these samples.
    __device__ void add(const Four<T>& term, const double* coefficients) {
        NFD_FAST_UNROLL
        for (int b = 0; b < kSamples; ++b) {
            if (b >= samples) continue;
            const T coefficient = static_cast<T>(coefficients[b]);
            NFD_FAST_UNROLL
            for (int i = 0; i < 4; ++i) {
                of[b][i] = fused_multiply_add(term.value[i], coefficient, of[b][i]);
            }
        }
    }
};

template <class T>
__global__ void __launch_bounds__(kThreads) step_kernel(EulerMaruyamaStep<T> step, T* out) {
    const std::int64_t block = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    const std::int64_t n = step.width, first = 4 * block, count = n - first;
    if (count <= 0) return;
    const std::int64_t groups = (step.batch + kSamples - 1) / kSamples;
    for (std::int64_t group = blockIdx.y; group < groups; group += gridDim.y) {
        const std::int64_t sample = group * kSamples, left = step.batch - sample;
        Sums<T> sums{left < kSamples ? left : kSamples, {}};
        const std::int64_t start = sample * n + first;
        for (int b = 0; b < sums.samples; ++b) {
            const Four<T> before = load(step.state + start + b * n, count);
            NFD_FAST_UNROLL
            for (int i = 0; i < 4; ++i) sums.of[b][i] = before.value[i];
        }
        for (std::int64_t term = 0; term < step.image_count; ++term) {
            sums.add(load(step.images + term * n + first, count),
                     step.image_coefficients + term * step.batch + sample);
        }
        for (std::int64_t term = 0; term < step.direction_count; ++term) {
            sums.add(load(step.directions + term * n + first, count),
                     step.direction_coefficients + term * step.batch + sample);
        }
        for (std::int64_t term = 0; term < step.column_count; ++term) {
            sums.add(made_of<T>(four_words(step.noise, static_cast<std::uint32_t>(block),
                                           step.columns[term])),
                     step.noise_coefficients + term * step.batch + sample);
        }
        for (int b = 0; b < sums.samples; ++b) {
            Four<T> after;
            NFD_FAST_UNROLL
            for (int i = 0; i < 4; ++i) after.value[i] = sums.of[b][i];
            store(after, out + start + b * n, count);
        }
    }
}

}  // namespace

template <class T>
void euler_maruyama_step(const EulerMaruyamaStep<T>& step, T* out, cudaStream_t stream) {
    if (step.width == 0 || step.batch == 0) return;
    const std::int64_t blocks = (step.width + 3) / 4;
    const std::int64_t groups = (step.batch + kSamples - 1) / kSamples;
    launch(step_kernel<T>,
           dim3(static_cast<unsigned>((blocks + kThreads - 1) / kThreads),
                static_cast<unsigned>(std::min(groups, kMostGroups))),
           kThreads, 0, stream, false, step, out);
}

template void euler_maruyama_step<float>(const EulerMaruyamaStep<float>&, float*, cudaStream_t);
template void euler_maruyama_step<double>(const EulerMaruyamaStep<double>&, double*, cudaStream_t);

}  // namespace nfd_fast::cuda
