// Philox words, normals and initial weights.

#include <pybind11/native_enum.h>

#include "bindings/arrays.hpp"
#include "bindings/python_monitor.hpp"
#include "cpu/kernels.hpp"
#include "cpu/weights.hpp"
#include "nfd_fast/philox.hpp"

namespace nfd_fast::bindings {
namespace {

void philox(const Array<std::uint32_t>& counters, std::uint32_t key0, std::uint32_t key1,
            Array<std::uint32_t>& out) {
    const std::int64_t blocks = counters.size() / 4;
    require_shape("counters", counters, {blocks, 4});
    require_shape("out", out, {blocks, 4});
    const std::uint32_t* in = counters.data();
    std::uint32_t* words = out.mutable_data();
    for (std::int64_t i = 0; i < blocks; ++i) {
        PhiloxCounter<std::uint64_t> block[1] = {
            {in[4 * i], in[4 * i + 1], in[4 * i + 2], in[4 * i + 3]}};
        philox4x32(block, key0, key1);
        words[4 * i] = static_cast<std::uint32_t>(block[0].c0);
        words[4 * i + 1] = static_cast<std::uint32_t>(block[0].c1);
        words[4 * i + 2] = static_cast<std::uint32_t>(block[0].c2);
        words[4 * i + 3] = static_cast<std::uint32_t>(block[0].c3);
    }
}

// Fills out (columns, size), tiles of neurons dealt to the threads.
template <class T, class Fill>
void fill_columns(const Array<std::uint32_t>& columns, Array<T>& out, int threads, Fill fill) {
    const std::int64_t size = out.ndim() == 2 ? out.shape(1) : 0;
    require_shape("columns", columns, {columns.size()});
    require_shape("out", out, {columns.size(), size});
    constexpr std::int64_t tile = 16384;
    const std::int64_t tiles = (size + tile - 1) / tile;
    const std::uint32_t* column = columns.data();
    T* data = out.mutable_data();
    PythonMonitor monitor(columns.size() * tiles, py::none());
    run_monitored(monitor, [&] {
        run_team(threads, [&](Team team) {
            team.for_tiles(columns.size() * tiles, 1, [&](std::int64_t index, std::int64_t) {
                if (team.polls) monitor.poll();
                if (monitor.stopped()) return;
                const std::int64_t c = index / tiles, first = index % tiles * tile;
                fill(column[c], first, std::min(tile, size - first), data + c * size + first);
            });
        });
    });
}

void words(std::uint64_t seed, Stream stream, std::int64_t layer,
           const Array<std::uint32_t>& columns, Array<std::uint32_t>& out, int threads) {
    fill_columns(columns, out, threads,
                 [address = noise_address(seed, stream, layer)](
                     std::uint32_t column, std::int64_t first, std::int64_t count,
                     std::uint32_t* to) { kernels().words(address, column, first, count, to); });
}

template <class T>
void normal(std::uint64_t seed, Stream stream, std::int64_t layer,
            const Array<std::uint32_t>& columns, Array<T>& out, int threads) {
    fill_columns(columns, out, threads,
                 [address = noise_address(seed, stream, layer)](
                     std::uint32_t column, std::int64_t first, std::int64_t count, T* to) {
                     kernels().of<T>().normal_neurons(address, column, first, count, to);
                 });
}

template <class T>
void box_muller(const Array<std::uint32_t>& given, Array<T>& out) {
    const std::int64_t blocks = given.size() / 4;
    require_shape("words", given, {blocks, 4});
    require_shape("out", out, {blocks, 4});
    kernels().of<T>().box_muller(given.data(), blocks, out.mutable_data());
}

// Fills out (layers, neurons, columns).
template <class T>
void initial_matrices(std::uint64_t seed, Stream stream, std::int64_t fine, Array<T>& out,
                      int threads) {
    if (out.ndim() != 3) throw py::value_error("out must have three axes");
    PythonMonitor monitor(1, py::none());
    const std::int64_t layers = out.shape(0), rows = out.shape(1), columns = out.shape(2);
    T* data = out.mutable_data();
    run_monitored(monitor, [&] {
        run_team(threads, [&](Team team) {
            fill_matrices(seed, stream, layers, rows, columns, fine, data, monitor, team);
        });
    });
}

template <class T>
void register_typed(py::module_& module) {
    module.def("normal", &normal<T>, py::arg("seed"), py::arg("stream"), py::arg("layer"),
               py::arg("columns").noconvert(), py::arg("out").noconvert(), py::arg("threads"));
    module.def("box_muller", &box_muller<T>, py::arg("words").noconvert(),
               py::arg("out").noconvert());
    module.def("initial_matrices", &initial_matrices<T>, py::arg("seed"), py::arg("stream"),
               py::arg("fine"), py::arg("out").noconvert(), py::arg("threads"));
}

}  // namespace

void register_noise(py::module_& module) {
    py::tuple names(8);
    std::size_t next = 0;
    py::native_enum<Stream> streams(module, "Stream", "enum.IntEnum");
#define NFD_FAST_STREAM_NAME(name)  \
    names[next++] = py::str(#name); \
    streams.value(#name, Stream::name);
    NFD_FAST_STREAMS(NFD_FAST_STREAM_NAME)
#undef NFD_FAST_STREAM_NAME
    streams.finalize();
    module.attr("STREAMS") = names;
    module.def("philox", &philox, py::arg("counters").noconvert(), py::arg("key0"), py::arg("key1"),
               py::arg("out").noconvert());
    module.def("words", &words, py::arg("seed"), py::arg("stream"), py::arg("layer"),
               py::arg("columns").noconvert(), py::arg("out").noconvert(), py::arg("threads"));
    register_typed<float>(module);
    register_typed<double>(module);
}

}  // namespace nfd_fast::bindings
