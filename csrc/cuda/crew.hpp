// Threads of a block that do a layer's algebra together (layer_algebra.hpp), and sums over a warp.
#pragma once

#include <cstdint>

#include "cuda/device.hpp"
#include "cuda/reduction.hpp"
#include "nfd_fast/small_matrix.hpp"

namespace nfd_fast::cuda {

__device__ inline double sum_over_warp(double value) {
    for (int mask = kWarp / 2; mask > 0; mask /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, mask);
    }
    return value;
}

// The first warp of a block, which waits for itself at next to no cost, or the whole block. Each
// number is worked out by one thread, in the order of the processor's crew but for solve().
class Crew {
  public:
    // `scratch` has a number for each warp of the block.
    __device__ Crew(int size, double* scratch)
        : size_(size), rank_(static_cast<int>(threadIdx.x)), scratch_(scratch) {}

    template <class F>
    __device__ void each(std::int64_t count, F f) const {
        for (std::int64_t i = rank_; i < count; i += size_) f(i);
        sync();
    }
    template <class F>
    __device__ void each(std::int64_t rows, std::int64_t columns, F f) const {
        // Half as long, a division takes far less time.
        const auto count = static_cast<std::uint32_t>(rows * columns);
        const auto width = static_cast<std::uint32_t>(columns);
        for (auto i = static_cast<std::uint32_t>(rank_); i < count;
             i += static_cast<std::uint32_t>(size_)) {
            f(static_cast<std::int64_t>(i / width), static_cast<std::int64_t>(i % width));
        }
        sync();
    }
    template <class F>
    __device__ double sum(std::int64_t count, F f) const {
        double sum = 0;
        for (std::int64_t i = rank_; i < count; i += size_) sum += f(i);
        sum = sum_over_warp(sum);
        if (size_ == kWarp) return sum;
        if (rank_ % kWarp == 0) scratch_[rank_ / kWarp] = sum;
        sync();
        sum = 0;
        for (int warp = 0; warp < size_ / kWarp; ++warp) sum += scratch_[warp];
        sync();
        return sum;
    }
    template <class F>
    __device__ void alone(F f) const {
        if (rank_ == 0) f();
        sync();
    }
    __device__ void sync() const {
        if (size_ == kWarp) {
            __syncwarp();
        } else {
            __syncthreads();
        }
    }

    __device__ void multiply(Transpose transpose, std::int64_t rows, std::int64_t columns,
                             std::int64_t inner, double factor, Small a, Small b, bool add,
                             Small c) const {
        // Of op(A), from one row to the next and along one.
        const std::int64_t down = transpose == Transpose::yes ? 1 : a.stride;
        const std::int64_t along = transpose == Transpose::yes ? a.stride : 1;
        each(rows, columns, [=](std::int64_t i, std::int64_t j) {
            double sum = add ? c(i, j) : 0;
            const double* left = a.data + i * down;
            const double* right = b.data + j;
            for (std::int64_t k = 0; k < inner; ++k) {
                sum += factor * left[k * along] * right[k * b.stride];
            }
            c(i, j) = sum;
        });
    }

    // One row of the solution after the other, taken off all that are left. What a row is divided
    // by is applied in the end, so that there is one wait per row.
    __device__ void solve(Transpose transpose, std::int64_t size, std::int64_t columns, Small r,
                          Small b) const {
        if (transpose == Transpose::yes) {
            for (std::int64_t i = 0; i + 1 < size; ++i) {
                const double diagonal = r(i, i);
                each(size - 1 - i, columns, [=](std::int64_t m, std::int64_t j) {
                    b(i + 1 + m, j) -= r(i, i + 1 + m) * (b(i, j) / diagonal);
                });
            }
        } else {
            for (std::int64_t i = size - 1; i > 0; --i) {
                const double diagonal = r(i, i);
                each(i, columns, [=](std::int64_t m, std::int64_t j) {
                    b(m, j) -= r(m, i) * (b(i, j) / diagonal);
                });
            }
        }
        each(size, columns, [=](std::int64_t i, std::int64_t j) { b(i, j) /= r(i, i); });
    }

  private:
    int size_, rank_;
    double* scratch_;
};

// Sums N numbers of each lane over the warp; afterwards lane i holds the total of number
// i / (32 / N), N a power of two up to 32.
template <int N>
__device__ inline double sums_over_warp(double (&value)[N]) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    int mask = kWarp / 2;
#pragma unroll
    for (int half = N / 2; half > 0; half /= 2, mask /= 2) {
        const bool upper = (lane & mask) != 0;
#pragma unroll
        for (int i = 0; i < half; ++i) {
            const double given = upper ? value[i] : value[i + half];
            const double kept = upper ? value[i + half] : value[i];
            value[i] = kept + __shfl_xor_sync(0xffffffffu, given, mask);
        }
    }
    for (; mask > 0; mask /= 2) value[0] += __shfl_xor_sync(0xffffffffu, value[0], mask);
    return value[0];
}

}  // namespace nfd_fast::cuda
