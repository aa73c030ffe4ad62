// One layer of the conditional representation on given arrays of a device.
#pragma once

#include "training/euler_maruyama_step.hpp"

using cudaStream_t = struct CUstream_st*;  // as CUDA has it

namespace nfd_fast::cuda {

// Fills out (B, n), which may be the state and must not overlap anything else. All pointers, those
// of the columns and coefficients too, are to memory of the device. Enqueued on the stream.
template <class T>
void euler_maruyama_step(const EulerMaruyamaStep<T>& step, T* out, cudaStream_t stream);

}  // namespace nfd_fast::cuda
