#include "cpu/weights.hpp"

#include <cmath>

#include "cpu/kernels.hpp"

namespace nfd_fast {
namespace {

constexpr int kRows = 4;  // neurons that share a Philox block
constexpr std::int64_t kColumns = 512;
constexpr std::int64_t kNeurons = 16384;

}  // namespace

template <class T>
void fill_matrices(std::uint64_t seed, Stream stream, std::int64_t layers, std::int64_t rows,
                   std::int64_t columns, std::int64_t fine, T* out, Monitor& monitor, Team team) {
    const auto& vector = kernels().of<T>();
    const std::int64_t groups = (rows + kRows - 1) / kRows;
    const T normalization = static_cast<T>(1 / std::sqrt(static_cast<double>(fine)));
    T increment[kRows * kColumns];
    team.for_tiles(layers * groups, 1, [&](std::int64_t index, std::int64_t) {
        const std::int64_t layer = index / groups;
        const std::int64_t first = index % groups * kRows;
        const int count = static_cast<int>(std::min<std::int64_t>(kRows, rows - first));
        T* block = out + (layer * rows + first) * columns;
        for (std::int64_t j = 0; j < columns; j += kColumns) {
            const std::int64_t now = std::min(kColumns, columns - j);
            for (std::int64_t s = 1; s <= fine && !monitor.stopped(); ++s) {
                if (team.polls) monitor.poll();
                const NoiseAddress address = noise_address(seed, stream, layer * fine + s);
                if (s == 1) {
                    vector.normal_columns(address, first, count, j, now, block + j, columns);
                    continue;
                }
                vector.normal_columns(address, first, count, j, now, increment, kColumns);
                for (int row = 0; row < count; ++row) {
                    vector.axpy(T(1), increment + row * kColumns, now, block + row * columns + j);
                }
            }
            if (fine == 1) continue;
            for (int row = 0; row < count; ++row) {
                T* sum = block + row * columns + j;
                vector.scale(normalization, sum, now, sum);
            }
        }
    });
}

template <class T>
void fill_vectors(std::uint64_t seed, Stream stream, std::int64_t columns, std::int64_t width,
                  T* out, Monitor& monitor, Team team) {
    const std::int64_t tiles = (width + kNeurons - 1) / kNeurons;
    team.for_tiles(columns * tiles, 1, [&](std::int64_t index, std::int64_t) {
        if (team.polls) monitor.poll();
        if (monitor.stopped()) return;
        const std::int64_t column = index / tiles;
        const std::int64_t first = index % tiles * kNeurons;
        kernels().of<T>().normal_neurons(
            noise_address(seed, stream, 1), static_cast<std::uint32_t>(column), first,
            std::min(kNeurons, width - first), out + column * width + first);
    });
}

#define NFD_FAST_INSTANTIATE(T)                                                                    \
    template void fill_matrices<T>(std::uint64_t, Stream, std::int64_t, std::int64_t,              \
                                   std::int64_t, std::int64_t, T*, Monitor&, Team);                \
    template void fill_vectors<T>(std::uint64_t, Stream, std::int64_t, std::int64_t, T*, Monitor&, \
                                  Team);
NFD_FAST_INSTANTIATE(float)
NFD_FAST_INSTANTIATE(double)
#undef NFD_FAST_INSTANTIATE

}  // namespace nfd_fast
