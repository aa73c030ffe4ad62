// The table of activations, and its functions on arrays; whether an array is finite.

#include "bindings/arrays.hpp"
#include "bindings/gil.hpp"
#include "cpu/kernels.hpp"
#include "nfd_fast/activations.hpp"

namespace nfd_fast::bindings {
namespace {

template <class T>
void apply(int activation, bool derivative, const Array<T>& x, Array<T>& out) {
    require_shape("x", x, {x.size()});
    require_shape("out", out, {x.size()});
    if (activation < 0 || activation >= activation_count) {
        throw py::value_error("no such activation");
    }
    const auto& vector = kernels().of<T>();
    const T* in = x.data();
    T* to = out.mutable_data();
    const WithoutGil without_gil;
    (derivative ? vector.differentiate : vector.activate)(activation, in, x.size(), to);
}

template <class T>
bool all_finite(const Array<T>& array) {
    const auto& vector = kernels().of<T>();
    const T* data = array.data();
    const std::int64_t count = array.size();
    const WithoutGil without_gil;
    return vector.all_finite(data, count);
}

}  // namespace

void register_activations(py::module_& module) {
    py::tuple names(activation_count);
    py::tuple formulas(activation_count);
    for (const ActivationInfo& row : activation_table) {
        names[static_cast<std::size_t>(row.activation)] = py::str(std::string(row.name));
        formulas[static_cast<std::size_t>(row.activation)] = py::str(std::string(row.formula));
    }
    module.attr("ACTIVATIONS") = names;
    module.attr("ACTIVATION_FORMULAS") = formulas;
    module.def("apply_activation", &apply<float>, py::arg("activation"), py::arg("derivative"),
               py::arg("x").noconvert(), py::arg("out").noconvert());
    module.def("apply_activation", &apply<double>, py::arg("activation"), py::arg("derivative"),
               py::arg("x").noconvert(), py::arg("out").noconvert());
    module.def("all_finite", &all_finite<float>, py::arg("array").noconvert());
    module.def("all_finite", &all_finite<double>, py::arg("array").noconvert());
}

}  // namespace nfd_fast::bindings
