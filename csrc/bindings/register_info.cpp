// What was built, and what runs.

#include <omp.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "bindings/build_identity.hpp"
#include "cpu/blas.hpp"
#include "cpu/kernels.hpp"

namespace nfd_fast::bindings {

namespace py = pybind11;

void register_info(py::module_& module) {
    // The choice is made while importing, so that a wrong NFD_FAST_ISA is reported there and the
    // kernels can count on it.
    try {
        kernels();
    } catch (const std::runtime_error& error) {
        throw py::import_error(error.what());
    }
    module.def("instruction_set", [] { return std::string(kernels().name); });
    module.def("compiled_instruction_sets",
               [] { return py::tuple(py::cast(compiled_instruction_sets())); });
    module.def("supported_instruction_sets",
               [] { return py::tuple(py::cast(supported_instruction_sets())); });
    module.def("blas", [] { return std::string(blas::description()); });
    module.def(
        "default_threads", [] { return omp_get_max_threads(); },
        "Processors of this process, or OMP_NUM_THREADS.");
    module.def("most_threads", [] { return blas::kMostCallers; });
    register_build_identity(module);
    module.attr("COMPILER") = NFD_FAST_COMPILER;
    module.attr("OPENMP") = _OPENMP;
}

}  // namespace nfd_fast::bindings
