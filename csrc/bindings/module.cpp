// nfd_fast._core: the compiled kernels. This file only registers.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

namespace nfd_fast::bindings {
void register_info(pybind11::module_& module);
void register_noise(pybind11::module_& module);
void register_activations(pybind11::module_& module);
void register_layers(pybind11::module_& module);
void register_theory(pybind11::module_& module);
void register_training(pybind11::module_& module);
}  // namespace nfd_fast::bindings

PYBIND11_MODULE(_core, module) {
    namespace bindings = nfd_fast::bindings;
    module.doc() = "Compiled kernels of nfd_fast; use them through nfd_fast.kernels.";
    // The first array lets the lock go: here, and not in a daemon thread while Python ends
    // (gil.hpp).
    const pybind11::array_t<double> first(0);
    bindings::register_info(module);
    bindings::register_noise(module);
    bindings::register_activations(module);
    bindings::register_layers(module);
    bindings::register_theory(module);
    bindings::register_training(module);
}
