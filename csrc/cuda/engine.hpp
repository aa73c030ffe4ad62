// The engines on a device, as the bindings call them (see training/problem.hpp).
#pragma once

#include "training/problem.hpp"

namespace nfd_fast::cuda {

// Each trains all replicas on the current device, as many at a time as fit its free memory, with
// the same bits every time. Throws DeviceError where CUDA fails, std::bad_alloc where not even one
// replica fits. The estimates are what one replica takes of the device's memory.
template <class T>
void train_dense(const Problem<T>& problem, Monitor& monitor);
template <class T>
double dense_bytes(const Problem<T>& problem);
template <class T>
void train_conditional(const Problem<T>& problem, Monitor& monitor);
template <class T>
double conditional_bytes(const Problem<T>& problem);

}  // namespace nfd_fast::cuda
