// The passes and the update of hidden layers on given arrays, and a step without their matrices.

#include <pybind11/stl.h>

#include <limits>
#include <optional>
#include <string>

#include "bindings/arrays.hpp"
#include "bindings/python_monitor.hpp"
#include "cpu/euler_maruyama.hpp"
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
    if (features.shape(1) > std::numeric_limits<int>::max()) {  // a size in the BLAS interface
        throw py::value_error("batch must be at most 2**31 - 1, got " +
                              std::to_string(features.shape(1)));
    }
    return {features.shape(2), features.shape(0) - 1, features.shape(1), branch_factor, skip,
            activation};
}

template <class T>
void forward(const Array<T>& hidden, Array<T>& features, double branch_factor, bool skip,
             int activation, int threads) {
    const LayerStack stack = stack_of(features, branch_factor, skip, activation);
    require_shape("hidden", hidden, {stack.depth, stack.width, stack.width});
    PythonMonitor monitor(1, py::none());
    const T* matrices = hidden.data();
    T* layers = features.mutable_data();
    run_monitored(monitor, [&] { run_forward(stack, matrices, layers, threads, monitor); });
}

template <class T>
void backward(const Array<T>& hidden, const Array<T>& features,
              const std::optional<Array<T>>& sources, Array<T>& adjoints, double branch_factor,
              bool skip, int activation, int threads) {
    const LayerStack stack = stack_of(features, branch_factor, skip, activation);
    require_shape("hidden", hidden, {stack.depth, stack.width, stack.width});
    require_shape("adjoints", adjoints, {stack.depth + 1, stack.batch, stack.width});
    if (sources) require_shape("sources", *sources, {stack.depth, stack.batch, stack.width});
    PythonMonitor monitor(1, py::none());
    const T* matrices = hidden.data();
    const T* layers = features.data();
    const AdjointStore<T> store{adjoints.mutable_data(), true, sources ? sources->data() : nullptr};
    run_monitored(monitor, [&] { run_backward(stack, matrices, layers, store, threads, monitor); });
}

template <class T>
void update(Array<T>& hidden, const Array<T>& features, const Array<T>& adjoints,
            const Array<double>& sample_weights, double step, bool replace, int activation,
            int threads) {
    const LayerStack stack = stack_of(features, 1.0, true, activation);
    require_shape("hidden", hidden, {stack.depth, stack.width, stack.width});
    require_shape("adjoints", adjoints, {stack.depth + 1, stack.batch, stack.width});
    require_shape("sample_weights", sample_weights, {stack.batch});
    PythonMonitor monitor(1, py::none());
    const HiddenUpdate<T> change{hidden.mutable_data(), nullptr, sample_weights.data(), step,
                                 replace};
    const T* layers = features.data();
    const T* adjoint_layers = adjoints.data();
    run_monitored(monitor,
                  [&] { run_update(stack, layers, adjoint_layers, change, threads, monitor); });
}

template <class T>
void step(const Array<T>& state, const Array<T>& images, const Array<double>& image_coefficients,
          const Array<T>& directions, const Array<double>& direction_coefficients,
          std::uint64_t seed, Stream stream, std::int64_t layer,
          const Array<std::uint32_t>& columns, const Array<double>& noise_coefficients,
          Array<T>& out, int threads) {
    if (state.ndim() != 2 || images.ndim() != 2 || directions.ndim() != 2) {
        throw py::value_error("state, images and directions must have two axes");
    }
    const std::int64_t batch = state.shape(0), width = state.shape(1);
    require_shape("images", images, {images.shape(0), width});
    require_shape("image_coefficients", image_coefficients, {images.shape(0), batch});
    require_shape("directions", directions, {directions.shape(0), width});
    require_shape("direction_coefficients", direction_coefficients, {directions.shape(0), batch});
    require_shape("columns", columns, {columns.size()});
    require_shape("noise_coefficients", noise_coefficients, {columns.size(), batch});
    require_shape("out", out, {batch, width});
    const EulerMaruyamaStep<T> step{width,
                                    batch,
                                    state.data(),
                                    images.shape(0),
                                    images.data(),
                                    image_coefficients.data(),
                                    directions.shape(0),
                                    directions.data(),
                                    direction_coefficients.data(),
                                    noise_address(seed, stream, layer),
                                    columns.size(),
                                    columns.data(),
                                    noise_coefficients.data()};
    PythonMonitor monitor(1, py::none());
    T* data = out.mutable_data();
    run_monitored(monitor, [&] { euler_maruyama_step(step, data, threads, monitor); });
}

// (L+1, B, n) with H_0 in its first layer, or (1, B, n) in place for a depth that is then told.
template <class T>
std::optional<std::int64_t> features_at_start(Array<T>& features, std::int64_t depth,
                                              double branch_factor, bool skip, int activation,
                                              std::uint64_t seed, std::int64_t fine,
                                              double tolerance, int threads) {
    LayerStack stack = stack_of(features, branch_factor, skip, activation);
    const bool in_place = stack.depth == 0;
    if (!in_place && stack.depth != depth) {
        throw py::value_error("features must have shape (depth + 1, batch, width)");
    }
    stack.depth = depth;
    if (depth < 1 || stack.layer_size() < 1 || fine < 1) {
        throw py::value_error("depth, batch, width and fine must be at least one");
    }
    const EulerMaruyama run{stack, seed, fine, tolerance, in_place};
    PythonMonitor monitor(1, py::none());
    T* data = features.mutable_data();
    std::optional<std::int64_t> bad;
    run_monitored(monitor, [&] { bad = run_euler_maruyama(run, data, threads, monitor); });
    return bad;
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
    module.def("euler_maruyama_step", &step<T>, py::arg("state").noconvert(),
               py::arg("images").noconvert(), py::arg("image_coefficients").noconvert(),
               py::arg("directions").noconvert(), py::arg("direction_coefficients").noconvert(),
               py::arg("seed"), py::arg("stream"), py::arg("layer"), py::arg("columns").noconvert(),
               py::arg("noise_coefficients").noconvert(), py::arg("out").noconvert(),
               py::arg("threads"));
    module.def("euler_maruyama", &features_at_start<T>, py::arg("features").noconvert(),
               py::arg("depth"), py::arg("branch_factor"), py::arg("skip"), py::arg("activation"),
               py::arg("seed"), py::arg("fine"), py::arg("tolerance"), py::arg("threads"));
}

}  // namespace

void register_layers(py::module_& module) {
    module.def(
        "euler_maruyama_bytes",
        [](std::int64_t width, std::int64_t batch, bool single, int threads) {
            if (width < 1 || batch < 1)
                throw py::value_error("width and batch must be at least one");
            LayerStack stack{};
            stack.width = width;
            stack.batch = batch;
            return (single ? euler_maruyama_bytes<float> : euler_maruyama_bytes<double>)(stack,
                                                                                         threads);
        },
        py::arg("width"), py::arg("batch"), py::arg("single"), py::arg("threads"),
        "Bytes that euler_maruyama() allocates.");
    register_typed<float>(module);
    register_typed<double>(module);
}

}  // namespace nfd_fast::bindings
