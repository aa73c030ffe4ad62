// What must be equal in two modules that hand each other objects; devices.py compares.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "bindings/training_task.hpp"

namespace nfd_fast::bindings {

inline void register_build_identity(py::module_& module) {
    module.attr("VERSION") = NFD_FAST_VERSION;
    // Modules whose pybind11 has another identifier don't know each other's types. The size stands
    // for what is in a task, which may differ between builds of a version that is in the making.
    module.attr("ABI") = std::string(PYBIND11_INTERNALS_ID) + " with tasks of " +
                         std::to_string(sizeof(TrainingTask<double>)) + " bytes";
}

}  // namespace nfd_fast::bindings
