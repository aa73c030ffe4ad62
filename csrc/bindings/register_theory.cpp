// Gaussian moments of activations and the kernels that they make.

#include "bindings/arrays.hpp"
#include "bindings/python_monitor.hpp"
#include "cpu/theory.hpp"

namespace nfd_fast::bindings {
namespace {

using Numbers = Array<double>;

Activation checked(int activation) {
    if (activation < 0 || activation >= activation_count) {
        throw py::value_error("no such activation");
    }
    return static_cast<Activation>(activation);
}

void moments(int activation, const Numbers& first, const Numbers& second, const Numbers& covariance,
             Numbers& product, Numbers& slope_product, int threads) {
    const Activation chosen = checked(activation);
    const std::int64_t count = first.size();
    require_shape("first", first, {count});
    require_shape("second", second, {count});
    require_shape("covariance", covariance, {count});
    require_shape("product", product, {count});
    require_shape("slope_product", slope_product, {count});
    const double *a = first.data(), *b = second.data(), *c = covariance.data();
    double *value = product.mutable_data(), *slope = slope_product.mutable_data();
    PythonMonitor monitor(1, py::none());
    run_monitored(
        monitor, [&] { gaussian_moments(chosen, count, a, b, c, value, slope, monitor, threads); });
}

void kernels_of(int activation, double factor, bool skip, Numbers& features, Numbers& adjoints,
                Numbers& products, int threads) {
    InitialKernels task{};
    task.activation = checked(activation);
    if (features.ndim() != 3 || features.shape(0) < 1) {
        throw py::value_error("features must have shape (depth + 1, batch, batch)");
    }
    task.depth = features.shape(0) - 1;
    task.batch = features.shape(1);
    require_shape("features", features, {task.depth + 1, task.batch, task.batch});
    require_shape("adjoints", adjoints, {task.depth + 1, task.batch, task.batch});
    require_shape("products", products, {task.depth, task.batch, task.batch});
    task.factor = factor;
    task.skip = skip;
    task.features = features.mutable_data();
    task.adjoints = adjoints.mutable_data();
    task.products = products.mutable_data();
    PythonMonitor monitor(1, py::none());
    run_monitored(monitor, [&] { initial_kernels(task, monitor, threads); });
}

}  // namespace

void register_theory(py::module_& module) {
    module.def("gaussian_moments", &moments, py::arg("activation"), py::arg("first").noconvert(),
               py::arg("second").noconvert(), py::arg("covariance").noconvert(),
               py::arg("product").noconvert(), py::arg("slope_product").noconvert(),
               py::arg("threads"));
    module.def("initial_kernels", &kernels_of, py::arg("activation"), py::arg("factor"),
               py::arg("skip"), py::arg("features").noconvert(), py::arg("adjoints").noconvert(),
               py::arg("products").noconvert(), py::arg("threads"));
}

}  // namespace nfd_fast::bindings
