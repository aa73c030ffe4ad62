// Where all blocks of a launch meet, again and again; they must all run at the same time.
#pragma once

#include "cuda/device.hpp"

namespace nfd_fast::cuda {

class Barrier {
  public:
    // `arrived` is 0 when the kernel starts.
    __device__ explicit Barrier(unsigned* arrived) : arrived_(arrived) {}

    // What this block has written will be seen by every block that has waited. All threads call
    // both, in turns; between the two a block can do what concerns no other.
    __device__ void arrive() {
        __syncthreads();
        expected_ += gridDim.x;
        if (threadIdx.x == 0) add_release(arrived_);
    }
    // By a thread of another warp than arrive()'s, which has to wait for what was written.
    __device__ void wait() const {
        if (threadIdx.x == blockDim.x - 1) {
            while (static_cast<int>(load_acquire(arrived_) - expected_) < 0) pause();
        }
        __syncthreads();
    }

  private:
    unsigned* arrived_;
    unsigned expected_ = 0;  // wraps around like the count itself
};

}  // namespace nfd_fast::cuda
