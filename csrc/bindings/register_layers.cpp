// The passes and the update of hidden layers on given arrays.

#include <pybind11/stl.h>

#include <optional>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/python_monitor.hpp"
#include "cpu/blas.hpp"
#include "cpu/layers.hpp"
#include "nfd_fast/activations.hpp"

namespace nfd_fast::bindings {
namespace {

template <class T>
LayerStack stack_of(const Array<T>& features, double branch_factor, bool skip, int activation) {
    if (features.ndim() != 3 || features.shape(0) < 1) {
        throw py::value_error("features must have shape (depth + 1, batch, width)");
    }
    if (activation < 0 || activation >= activation_count) {
        throw py::value_error("no such activation");
    }
    return {features.shape(2), features.shape(0) - 1, features.shape(1), branch_factor, skip,
            activation};
}

template <class T>
void forward(const Array<T>& hidden, Array<T>& features, double branch_factor, bool skip,
             int activation, int threads) {
    const LayerStack stack = stack_of(features, branch_factor, skip, activation);
    require_shape("hidden", hidden, {stack.depth, stack.width, stack.width});
    std::vector<T> activations(static_cast<std::size_t>(2 * stack.layer_size()));
    FirstBadStep bad;
    PythonMonitor monitor(1, py::none());
    const T* matrices = hidden.data();
    T* layers = features.mutable_data();
    run_monitored(monitor, [&] {
        const blas::SingleThreaded single_threaded_blas;
        run_team(threads, [&](Team team) {
            forward_layers(stack, matrices, layers, activations.data(), bad, monitor, team);
        });
    });
}

template <class T>
std::vector<T> tile_scratch(const LayerStack& stack, int threads) {
    return std::vector<T>(static_cast<std::size_t>(2 * threads * stack.batch * stack.tile()));
}

template <class T>
void backward(const Array<T>& hidden, const Array<T>& features,
              const std::optional<Array<T>>& sources, Array<T>& adjoints, double branch_factor,
              bool skip, int activation, int threads) {
    const LayerStack stack = stack_of(features, branch_factor, skip, activation);
    require_shape("hidden", hidden, {stack.depth, stack.width, stack.width});
    require_shape("adjoints", adjoints, {stack.depth + 1, stack.batch, stack.width});
    if (sources) require_shape("sources", *sources, {stack.depth, stack.batch, stack.width});
    std::vector<T> scratch = tile_scratch<T>(stack, threads);
    FirstBadStep bad;
    PythonMonitor monitor(1, py::none());
    const T* matrices = hidden.data();
    const T* layers = features.data();
    const AdjointStore<T> store{adjoints.mutable_data(), true, sources ? sources->data() : nullptr};
    run_monitored(monitor, [&] {
        const blas::SingleThreaded single_threaded_blas;
        run_team(threads, [&](Team team) {
            backward_layers(stack, matrices, layers, store, HiddenUpdate<T>{}, scratch.data(), bad,
                            monitor, team);
        });
    });
}

template <class T>
void update(Array<T>& hidden, const Array<T>& features, const Array<T>& adjoints,
            const Array<double>& sample_weights, double step, bool replace, int activation,
            int threads) {
    const LayerStack stack = stack_of(features, 1.0, true, activation);
    require_shape("hidden", hidden, {stack.depth, stack.width, stack.width});
    require_shape("adjoints", adjoints, {stack.depth + 1, stack.batch, stack.width});
    require_shape("sample_weights", sample_weights, {stack.batch});
    std::vector<T> scratch = tile_scratch<T>(stack, threads);
    PythonMonitor monitor(1, py::none());
    const HiddenUpdate<T> change{hidden.mutable_data(), nullptr, sample_weights.data(), step,
                                 replace};
    const T* layers = features.data();
    const T* adjoint_layers = adjoints.data();
    run_monitored(monitor, [&] {
        const blas::SingleThreaded single_threaded_blas;
        run_team(threads, [&](Team team) {
            update_layers(stack, layers, adjoint_layers, change, scratch.data(), monitor, team);
        });
    });
}

template <class T>
void register_typed(py::module_& module) {
    module.def("residual_forward", &forward<T>, py::arg("hidden").noconvert(),
               py::arg("features").noconvert(), py::arg("branch_factor"), py::arg("skip"),
               py::arg("activation"), py::arg("threads"));
    module.def("residual_backward", &backward<T>, py::arg("hidden").noconvert(),
               py::arg("features").noconvert(), py::arg("sources").noconvert(),
               py::arg("adjoints").noconvert(), py::arg("branch_factor"), py::arg("skip"),
               py::arg("activation"), py::arg("threads"));
    module.def("sgd_update", &update<T>, py::arg("hidden").noconvert(),
               py::arg("features").noconvert(), py::arg("adjoints").noconvert(),
               py::arg("sample_weights").noconvert(), py::arg("step"), py::arg("replace"),
               py::arg("activation"), py::arg("threads"));
}

}  // namespace

void register_layers(py::module_& module) {
    register_typed<float>(module);
    register_typed<double>(module);
}

}  // namespace nfd_fast::bindings
