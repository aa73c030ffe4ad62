// nfd_fast._cuda: devices and what runs on them. This file only registers.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "cuda/device_error.hpp"

namespace nfd_fast::bindings {
void register_devices(pybind11::module_& module);
void register_device_layers(pybind11::module_& module);
void register_device_noise(pybind11::module_& module);
void register_device_training(pybind11::module_& module);
}  // namespace nfd_fast::bindings

PYBIND11_MODULE(NFD_FAST_CUDA_MODULE, module) {
    namespace py = pybind11;
    namespace bindings = nfd_fast::bindings;
    py::module_::import("nfd_fast._core");  // has the types of streams, engines and tasks
    module.doc() = "Engines and kernels of nfd_fast on CUDA; use them with device=\"cuda\".";
    // The first array lets the lock go: here, and not in a daemon thread while Python ends
    // (gil.hpp).
    const pybind11::array_t<double> first(0);
    py::register_local_exception_translator([](std::exception_ptr raised) {
        try {
            if (raised) std::rethrow_exception(raised);
        } catch (const nfd_fast::cuda::DeviceError& error) {
            const py::object type = py::module_::import("nfd_fast.exceptions").attr("DeviceError");
            PyErr_SetString(type.ptr(), error.what());
        }
    });
    bindings::register_devices(module);
    bindings::register_device_layers(module);
    bindings::register_device_noise(module);
    bindings::register_device_training(module);
}
