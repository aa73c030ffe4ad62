// Kernels on arrays of the caller's on a device, on the caller's stream.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "bindings/dlpack.hpp"
#include "bindings/gil.hpp"
#include "cuda/devices.hpp"

namespace nfd_fast::bindings {

inline cudaStream_t stream_of(std::uintptr_t handle) {
    return reinterpret_cast<cudaStream_t>(handle);
}

// Runs work(stream) on the device of an array, and waits for it if asked to.
template <class Work>
void run_beside(const BorrowedArray& array, std::uintptr_t stream, bool wait, Work work) {
    const int device = array.device().index;
    const WithoutGil without_gil;
    const cuda::OnDevice current(device);
    work(stream_of(stream));
    if (wait) cuda::wait_for(stream_of(stream));
}

// Calls work(T{}) for the floating-point type of an array.
template <class Work>
void with_type_of(const BorrowedArray& array, Work work) {
    if (array.type_name() == "float32") return work(float{});
    if (array.type_name() == "float64") return work(double{});
    throw py::type_error("arrays must be float32 or float64");
}

}  // namespace nfd_fast::bindings
