// The hidden layers on arrays of the caller's on a device: the counterpart of cpu/layers.hpp's
// whole computations, by the layers of the dense engine.
//
// Pointers are to memory of the device. Everything is enqueued on the stream, with memory of its
// own taken and given back there, and returns at once. Throws DeviceError where cuBLAS is needed
// and missing, before anything is written.
#pragma once

#include <cstdint>

#include "training/layer_stack.hpp"

using cudaStream_t = struct CUstream_st*;  // as CUDA has it

namespace nfd_fast::cuda {

// Fills features 1 ... L from features 0.
template <class T>
void run_forward(const LayerStack& stack, const T* hidden, T* features, cudaStream_t stream);

// Fills adjoints L-1 ... 0 from adjoint L; the store has all layers.
template <class T>
void run_backward(const LayerStack& stack, const T* hidden, const T* features,
                  const AdjointStore<T>& adjoints, cudaStream_t stream);

// W_l -= step/sqrt(n) sum_b w_b G_l[b] phi(H_{l-1}[b])^T, with step = eta beta m.
template <class T>
void run_update(const LayerStack& stack, const T* features, const T* adjoints,
                const double* sample_weights, double step, T* hidden, cudaStream_t stream);

}  // namespace nfd_fast::cuda
