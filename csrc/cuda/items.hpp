// Kernels of one thread, or one block, for each of many items of each replica.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/reduction.hpp"

namespace nfd_fast::cuda {

constexpr int kThreads = 256;  // of a block

// Shared memory for block_sum().
constexpr std::size_t kWarpSums = sizeof(double) * kThreads / kWarp;

// One thread for each of `items`, and the same again for each replica.
inline dim3 grid(std::int64_t items, int replicas, std::int64_t per_block = kThreads) {
    return dim3(static_cast<unsigned>((items + per_block - 1) / per_block),
                static_cast<unsigned>(replicas));
}

// The one of this thread.
__device__ inline std::int64_t item() {
    return static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

}  // namespace nfd_fast::cuda
