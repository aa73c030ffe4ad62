// A block whose threads do a layer's algebra together (layer_algebra.hpp), and sums over a warp.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/device.hpp"
#include "cuda/reduction.hpp"
#include "nfd_fast/small_matrix.hpp"

namespace nfd_fast::cuda {

// The code is kept small: it is run once a layer, and to fetch it takes longer than to run it. Each
// number is worked out by one thread.
//
// It knows nothing of the thread that calls it, so that a block can keep one in shared memory.
class Crew {
  public:
    // `scratch` has `room` numbers, one for each warp of the block at least.
    __device__ Crew(double* scratch, std::int64_t room) : scratch_(scratch), room_(room) {}

    __device__ static int threads() { return static_cast<int>(blockDim.x); }
    __device__ static int warps() { return threads() / kWarp; }

    template <class F>
    __device__ void each(std::int64_t count, F f) const {
#pragma unroll 1
        for (int i = static_cast<int>(threadIdx.x); i < static_cast<int>(count); i += threads()) {
            f(i);
        }
        sync();
    }
    // A grid of threads, four to a row: a division would take longer than most f.
    template <class F>
    __device__ void each(std::int64_t rows, std::int64_t columns, F f) const {
#pragma unroll 1
        for (int i = first_row(); i < static_cast<int>(rows); i += grid_rows()) {
#pragma unroll 1
            for (int j = first_column(); j < static_cast<int>(columns); j += kGridColumns) f(i, j);
        }
        sync();
    }
    template <class F>
    __device__ double sum(std::int64_t count, F f) const {
        double sum = 0;
        for (auto i = static_cast<std::int64_t>(threadIdx.x); i < count; i += threads()) {
            sum += f(i);
        }
        sum = warp_sum(sum);
        if (threadIdx.x % kWarp == 0) scratch_[threadIdx.x / kWarp] = sum;
        sync();
        sum = 0;
        for (int warp = 0; warp < warps(); ++warp) sum += scratch_[warp];
        sync();
        return sum;
    }
    template <class F>
    __device__ void alone(F f) const {
        if (threadIdx.x == 0) f();
        sync();
    }
    __device__ static void sync() { __syncthreads(); }
    // A pass asks the host now and then, between layers.
    __device__ static constexpr bool stopped() { return false; }

    __device__ NFD_FAST_OUTLINE void multiply(Transpose transpose, std::int64_t rows,
                                              std::int64_t columns, std::int64_t inner,
                                              double factor, Small a, Small b, bool add,
                                              Small c) const {
        // Of op(A), from one row to the next and along one.
        const int stride = static_cast<int>(a.stride), apart = static_cast<int>(b.stride);
        const int down = transpose == Transpose::yes ? 1 : stride;
        const int along = transpose == Transpose::yes ? stride : 1;
        const int count = static_cast<int>(rows), rows_at_once = grid_rows();
#pragma unroll 1
        for (int j = first_column(); j < static_cast<int>(columns); j += kGridColumns) {
            // Two rows at a time: one sum alone waits for itself.
#pragma unroll 1
            for (int i = first_row(); i < count; i += 2 * rows_at_once) {
                const bool two = i + rows_at_once < count;
                const double* upper = a.data + i * down;
                const double* lower = two ? upper + rows_at_once * down : upper;
                const double* right = b.data + j;
                double first[2] = {0, 0}, second[2] = {0, 0};
#pragma unroll 4
                for (int k = static_cast<int>(inner); k > 0; k -= 2) {
                    const bool pair = k > 1;
                    const double next = pair ? right[apart] : 0.0;
                    first[0] = ::fma(upper[0], right[0], first[0]);
                    second[0] = ::fma(lower[0], right[0], second[0]);
                    first[1] = ::fma(pair ? upper[along] : 0.0, next, first[1]);
                    second[1] = ::fma(pair ? lower[along] : 0.0, next, second[1]);
                    upper += 2 * along;
                    lower += 2 * along;
                    right += 2 * apart;
                }
                const auto put = [&](int row, double product) {
                    c(row, j) = add ? c(row, j) + product : product;
                };
                put(i, factor * (first[0] + first[1]));
                if (two) put(i + rows_at_once, factor * (second[0] + second[1]));
            }
        }
        sync();
    }

    // One row of the solution after the other, taken off all that are left. What a row is divided
    // by is applied in the end, so that there is one wait per row.
    __device__ NFD_FAST_OUTLINE void solve(Transpose transpose, std::int64_t size,
                                           std::int64_t columns, Small r, Small b) const {
        if (columns == 0) return;
        const bool transposed = transpose == Transpose::yes;
        // Divisions take longest: by each diagonal once, and to find a thread its column once.
        const bool kept = size <= room_;
        if (kept) {
            each(size, [=](std::int64_t i) { scratch_[i] = 1 / r(i, i); });
        }
        const auto width = static_cast<std::uint32_t>(columns);
        const std::uint32_t at_once =
            columns <= threads() ? static_cast<std::uint32_t>(threads()) / width : 1;
        const std::uint32_t first = columns <= threads() ? threadIdx.x / width : 0;
        const std::uint32_t column = threadIdx.x - first * width;
        const auto step = columns <= threads() ? width : static_cast<std::uint32_t>(threads());
        for (std::int64_t done = 0; done + 1 < size; ++done) {
            const std::int64_t i = transposed ? done : size - 1 - done;
            // Rows of the triangle come along a row of R^T, or down a column of R.
            const std::int64_t start = transposed ? i + 1 : 0;
            const std::int64_t rows = size - 1 - done;
            const double* factor = transposed ? &r(i, start) : &r(0, i);
            const std::int64_t apart = transposed ? 1 : r.stride;
            const double diagonal = kept ? scratch_[i] : 1 / r(i, i);
            if (first < at_once) {
                for (std::uint32_t j = column; j < width; j += step) {
                    const double known = b(i, j) * diagonal;
                    for (std::int64_t m = first; m < rows; m += at_once) {
                        b(start + m, j) -= factor[m * apart] * known;
                    }
                }
            }
            sync();
        }
        each(size, columns, [=](std::int64_t i, std::int64_t j) {
            b(i, j) = kept ? b(i, j) * scratch_[i] : b(i, j) / r(i, i);
        });
    }

  private:
    static constexpr int kGridColumns = 4;

    __device__ static int first_column() { return static_cast<int>(threadIdx.x) % kGridColumns; }
    __device__ static int first_row() { return static_cast<int>(threadIdx.x) / kGridColumns; }
    __device__ static int grid_rows() { return threads() / kGridColumns; }

    double* scratch_;
    std::int64_t room_;
};

// Sums N numbers of each lane over the warp, or over the lanes that differ in the bits from Last to
// Mask; afterwards the lane whose bits there say i holds the total of number i / (2 Mask / Last /
// N), for N a power of two up to 2 Mask / Last: each half of the lanes goes on with half of the
// numbers. Compile-time indices throughout, so that the numbers stay in registers.
template <int N, int Mask = kWarp / 2, int Last = 1>
__device__ inline double sums_over_warp(double (&value)[N]) {
    if constexpr (N == 1) {
        double sum = value[0];
#pragma unroll
        for (int mask = Mask; mask >= Last; mask /= 2) {
            sum += __shfl_xor_sync(0xffffffffu, sum, mask);
        }
        return sum;
    } else {
        const bool upper = (static_cast<int>(threadIdx.x) & Mask) != 0;
        double half[N / 2];
#pragma unroll
        for (int i = 0; i < N / 2; ++i) {
            const double low = value[i], high = value[i + N / 2];
            half[i] = (upper ? high : low) + __shfl_xor_sync(0xffffffffu, upper ? low : high, Mask);
        }
        return sums_over_warp<N / 2, Mask / 2, Last>(half);
    }
}

}  // namespace nfd_fast::cuda
