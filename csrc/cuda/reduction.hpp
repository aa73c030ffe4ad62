// Sums over the threads of a block, in an order that depends on their number alone.
#pragma once

#include "cuda/device.hpp"

namespace nfd_fast::cuda {

constexpr int kWarp = 32;

// The sum over a warp, the same on all its lanes.
__device__ inline double warp_sum(double value) {
    for (int mask = kWarp / 2; mask > 0; mask /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, mask);
    }
    return value;
}

// The sum over a block of whole warps, on its first thread. All threads call it; `scratch` is
// shared memory for one number per warp.
__device__ inline double block_sum(double value, double* scratch) {
    value = warp_sum(value);
    __syncthreads();  // the sum before has been read
    if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
    __syncthreads();
    if (threadIdx.x != 0) return 0;
    double sum = 0;
    for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) sum += scratch[warp];
    return sum;
}

}  // namespace nfd_fast::cuda
