// Noise into arrays of the caller's on a device, on the caller's stream.

#include <pybind11/pybind11.h>

#include "bindings/arrays.hpp"
#include "bindings/device_work.hpp"
#include "cuda/noise.hpp"

namespace nfd_fast::bindings {
namespace {

// Runs fill(columns on the device, count, size, data of out, stream).
template <class T, class Fill>
void fill_columns(const Array<std::uint32_t>& columns, const BorrowedArray& out,
                  std::uintptr_t stream, bool wait, Fill fill) {
    const auto shape = out.shape();
    const std::int64_t count = columns.size(), size = shape.size() == 2 ? shape[1] : 0;
    T* data = out.data<T>("out", {count, size});
    const std::uint32_t* given = columns.data();
    run_beside(out, stream, wait, [&](cudaStream_t there) {
        const auto bytes = static_cast<std::size_t>(count) * sizeof(std::uint32_t);
        const cuda::StreamMemory copy(bytes, there);
        cuda::to_device(copy.as<void>(), given, bytes, there);
        fill(copy.as<std::uint32_t>(), count, size, data, there);
    });
}

void words(std::uint64_t seed, Stream tag, std::int64_t layer, const Array<std::uint32_t>& columns,
           const BorrowedArray& out, std::uintptr_t stream, bool wait) {
    fill_columns<std::uint32_t>(columns, out, stream, wait, [&](auto... place) {
        cuda::words(noise_address(seed, tag, layer), place...);
    });
}

void normal(std::uint64_t seed, Stream tag, std::int64_t layer, const Array<std::uint32_t>& columns,
            const BorrowedArray& out, std::uintptr_t stream, bool wait) {
    with_type_of(out, [&](auto zero) {
        fill_columns<decltype(zero)>(columns, out, stream, wait, [&](auto... place) {
            cuda::normals(noise_address(seed, tag, layer), place...);
        });
    });
}

void box_muller(const BorrowedArray& words, const BorrowedArray& out, std::uintptr_t stream,
                bool wait) {
    with_type_of(out, [&](auto zero) {
        const auto shape = out.shape();
        const std::int64_t blocks = shape.empty() ? 0 : shape[0];
        const auto* given = words.data<std::uint32_t>("words", {blocks, 4});
        auto* data = out.data<decltype(zero)>("out", {blocks, 4});
        run_beside(out, stream, wait,
                   [&](cudaStream_t there) { cuda::box_muller(given, blocks, data, there); });
    });
}

// What engines on the device start from, copied into `out`: fill(seeds, data, stream) fills as many
// numbers there, one seed per entry of the first axis.
template <class T, class Fill>
void copy_filled(const Array<std::uint64_t>& seeds, Array<T>& out, Fill fill) {
    require_shape("seeds", seeds, {out.shape(0)});
    const cudaStream_t stream = stream_of(cuda::kThreadStream);
    const auto bytes = static_cast<std::size_t>(out.nbytes());
    const auto seed_bytes = static_cast<std::size_t>(seeds.nbytes());
    const cuda::StreamMemory given(seed_bytes, stream), there(bytes, stream);
    cuda::to_device(given.as<void>(), seeds.data(), seed_bytes, stream);
    fill(given.as<std::uint64_t>(), there.as<T>(), stream);
    cuda::to_host(out.mutable_data(), there.as<void>(), bytes, stream);
}

// out (replicas, layers, rows, columns)
template <class T>
void initial_matrices(const Array<std::uint64_t>& seeds, Stream tag, std::int64_t fine,
                      Array<T>& out) {
    if (out.ndim() != 4) throw py::value_error("out must have four axes");
    copy_filled(seeds, out, [&](const std::uint64_t* there, T* data, cudaStream_t stream) {
        cuda::fill_matrices(there, static_cast<int>(out.shape(0)), tag, out.shape(1), out.shape(2),
                            out.shape(3), fine, data, stream);
    });
}

// out (replicas, columns, width)
template <class T>
void initial_vectors(const Array<std::uint64_t>& seeds, Stream tag, Array<T>& out) {
    if (out.ndim() != 3) throw py::value_error("out must have three axes");
    copy_filled(seeds, out, [&](const std::uint64_t* there, T* data, cudaStream_t stream) {
        cuda::fill_vectors(there, static_cast<int>(out.shape(0)), tag, out.shape(1), out.shape(2),
                           data, stream);
    });
}

template <class T>
void register_typed(py::module_& module) {
    module.def("initial_matrices", &initial_matrices<T>, py::arg("seeds").noconvert(),
               py::arg("stream"), py::arg("fine"), py::arg("out").noconvert());
    module.def("initial_vectors", &initial_vectors<T>, py::arg("seeds").noconvert(),
               py::arg("stream"), py::arg("out").noconvert());
}

}  // namespace

void register_device_noise(py::module_& module) {
    module.def("words", &words, py::arg("seed"), py::arg("stream"), py::arg("layer"),
               py::arg("columns").noconvert(), py::arg("out"), py::arg("cuda_stream"),
               py::arg("wait"));
    module.def("normal", &normal, py::arg("seed"), py::arg("stream"), py::arg("layer"),
               py::arg("columns").noconvert(), py::arg("out"), py::arg("cuda_stream"),
               py::arg("wait"));
    module.def("box_muller", &box_muller, py::arg("words"), py::arg("out"), py::arg("cuda_stream"),
               py::arg("wait"));
    register_typed<float>(module);
    register_typed<double>(module);
}

}  // namespace nfd_fast::bindings
