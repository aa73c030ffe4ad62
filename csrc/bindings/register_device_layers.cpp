// The passes and the update of hidden layers on arrays of a device, and a step without their
// matrices.

#include <pybind11/pybind11.h>

#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/device_work.hpp"
#include "cuda/euler_maruyama.hpp"
#include "cuda/layers.hpp"
#include "nfd_fast/activations.hpp"

namespace nfd_fast::bindings {
namespace {

LayerStack stack_of(const BorrowedArray& features, double branch_factor, bool skip,
                    int activation) {
    const auto shape = features.shape();
    if (shape.size() != 3 || shape[0] < 1) {
        throw py::value_error("features must have shape (depth + 1, batch, width)");
    }
    if (activation < 0 || activation >= activation_count) {
        throw py::value_error("no such activation");
    }
    return {shape[2], shape[0] - 1, shape[1], branch_factor, skip, activation};
}

// Where arrays of a stack lie.
template <class T>
T* matrices_of(const LayerStack& s, const BorrowedArray& array) {
    return array.data<T>("hidden", {s.depth, s.width, s.width});
}
template <class T>
T* layers_of(const LayerStack& s, const char* name, const BorrowedArray& array) {
    return array.data<T>(name, {s.depth + 1, s.batch, s.width});
}

// A layer that the caller gave goes to its place, unless it lies there.
template <class T>
void put(const LayerStack& s, const T* given, T* place, cudaStream_t stream) {
    if (given == place) return;
    cuda::copy_there(place, given, static_cast<std::size_t>(s.layer_size()) * sizeof(T), stream);
}

void forward(const BorrowedArray& hidden, const BorrowedArray& first, const BorrowedArray& features,
             double branch_factor, bool skip, int activation, std::uintptr_t stream, bool wait) {
    const LayerStack s = stack_of(features, branch_factor, skip, activation);
    with_type_of(features, [&](auto zero) {
        using T = decltype(zero);
        const T* matrices = matrices_of<T>(s, hidden);
        const T* given = first.data<T>("features_0", {s.batch, s.width});
        T* layers = layers_of<T>(s, "features", features);
        run_beside(features, stream, wait, [&](cudaStream_t there) {
            put(s, given, layers, there);
            cuda::run_forward(s, matrices, layers, there);
        });
    });
}

void backward(const BorrowedArray& hidden, const BorrowedArray& features,
              const BorrowedArray* sources, const BorrowedArray& last,
              const BorrowedArray& adjoints, double branch_factor, bool skip, int activation,
              std::uintptr_t stream, bool wait) {
    const LayerStack s = stack_of(features, branch_factor, skip, activation);
    with_type_of(adjoints, [&](auto zero) {
        using T = decltype(zero);
        const T* matrices = matrices_of<T>(s, hidden);
        const T* layers = layers_of<T>(s, "features", features);
        const T* given = last.data<T>("adjoints_last", {s.batch, s.width});
        const T* entering =
            sources ? sources->data<T>("sources", {s.depth, s.batch, s.width}) : nullptr;
        const AdjointStore<T> store{layers_of<T>(s, "adjoints", adjoints), true, entering};
        run_beside(adjoints, stream, wait, [&](cudaStream_t there) {
            put(s, given, store.layer(s, s.depth), there);
            cuda::run_backward(s, matrices, layers, store, there);
        });
    });
}

// Without sample weights they are 1; `replace` leaves the step alone in `hidden`.
void update(const BorrowedArray& hidden, const BorrowedArray& features,
            const BorrowedArray& adjoints, const BorrowedArray* sample_weights, double step,
            bool replace, int activation, std::uintptr_t stream, bool wait) {
    const LayerStack s = stack_of(features, 1.0, true, activation);
    with_type_of(hidden, [&](auto zero) {
        using T = decltype(zero);
        T* matrices = matrices_of<T>(s, hidden);
        const T* layers = layers_of<T>(s, "features", features);
        const T* above = layers_of<T>(s, "adjoints", adjoints);
        const double* weights =
            sample_weights ? sample_weights->data<double>("sample_weights", {s.batch}) : nullptr;
        run_beside(hidden, stream, wait, [&](cudaStream_t there) {
            const std::vector<double> ones(weights ? 0 : static_cast<std::size_t>(s.batch), 1.0);
            const std::size_t bytes = ones.size() * sizeof(double);
            const cuda::StreamMemory own(bytes, there);
            if (!ones.empty()) cuda::to_device(own.as<void>(), ones.data(), bytes, there);
            if (replace) {
                cuda::clear_there(matrices, static_cast<std::size_t>(hidden.bytes()), there);
            }
            cuda::run_update(s, layers, above, weights ? weights : own.as<double>(), step, matrices,
                             there);
        });
    });
}

void step(const BorrowedArray& state, const BorrowedArray* images,
          const BorrowedArray* image_coefficients, const BorrowedArray* directions,
          const BorrowedArray* direction_coefficients, std::uint64_t seed, Stream tag,
          std::int64_t layer, const Array<std::uint32_t>& columns,
          const BorrowedArray& noise_coefficients, const BorrowedArray& out, std::uintptr_t stream,
          bool wait) {
    const auto shape = state.shape();
    if (shape.size() != 2) throw py::value_error("state must have two axes");
    if (!images != !image_coefficients || !directions != !direction_coefficients) {
        throw py::value_error("terms need their coefficients");
    }
    with_type_of(state, [&](auto zero) {
        using T = decltype(zero);
        const std::int64_t batch = shape[0], width = shape[1];
        const auto count_of = [](const BorrowedArray* terms) {
            return terms && !terms->shape().empty() ? terms->shape()[0] : std::int64_t{0};
        };
        const auto terms_of = [&](const char* name, const BorrowedArray* terms) -> const T* {
            return terms ? terms->data<T>(name, {count_of(terms), width}) : nullptr;
        };
        const auto coefficients_of = [&](const char* name, const BorrowedArray* terms,
                                         const BorrowedArray* coefficients) -> const double* {
            return coefficients ? coefficients->data<double>(name, {count_of(terms), batch})
                                : nullptr;
        };
        EulerMaruyamaStep<T> step{
            width,
            batch,
            state.data<T>("state", {batch, width}),
            count_of(images),
            terms_of("images", images),
            coefficients_of("image_coefficients", images, image_coefficients),
            count_of(directions),
            terms_of("directions", directions),
            coefficients_of("direction_coefficients", directions, direction_coefficients),
            noise_address(seed, tag, layer),
            columns.size(),
            nullptr,
            noise_coefficients.data<double>("noise_coefficients", {columns.size(), batch})};
        T* to = out.data<T>("out", {batch, width});
        const std::uint32_t* given = columns.data();
        const auto bytes = static_cast<std::size_t>(columns.nbytes());
        run_beside(out, stream, wait, [&](cudaStream_t there) {
            const cuda::StreamMemory copy(bytes, there);
            if (bytes > 0) cuda::to_device(copy.as<void>(), given, bytes, there);
            step.columns = copy.as<std::uint32_t>();
            cuda::euler_maruyama_step(step, to, there);
        });
    });
}

}  // namespace

void register_device_layers(py::module_& module) {
    module.def("residual_forward", &forward, py::arg("hidden"), py::arg("features_0"),
               py::arg("features"), py::arg("branch_factor"), py::arg("skip"),
               py::arg("activation"), py::arg("cuda_stream"), py::arg("wait"));
    module.def("residual_backward", &backward, py::arg("hidden"), py::arg("features"),
               py::arg("sources"), py::arg("adjoints_last"), py::arg("adjoints"),
               py::arg("branch_factor"), py::arg("skip"), py::arg("activation"),
               py::arg("cuda_stream"), py::arg("wait"));
    module.def("sgd_update", &update, py::arg("hidden"), py::arg("features"), py::arg("adjoints"),
               py::arg("sample_weights"), py::arg("step"), py::arg("replace"),
               py::arg("activation"), py::arg("cuda_stream"), py::arg("wait"));
    module.def("euler_maruyama_step", &step, py::arg("state"), py::arg("images"),
               py::arg("image_coefficients"), py::arg("directions"),
               py::arg("direction_coefficients"), py::arg("seed"), py::arg("stream"),
               py::arg("layer"), py::arg("columns").noconvert(), py::arg("noise_coefficients"),
               py::arg("out"), py::arg("cuda_stream"), py::arg("wait"));
}

}  // namespace nfd_fast::bindings
