#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "cuda/device.hpp"
#include "cuda/noise.hpp"
#include "cuda/noise_block.hpp"

namespace nfd_fast::cuda {
namespace {

constexpr unsigned kThreads = 256, kWarp = 32;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// So few blocks of threads that each takes several turns where there is much to do, and what it
// does once hardly counts; but more than run at once, so that the last ones of all end together.
template <class... Parameters>
std::int64_t enough_blocks(void (*kernel)(Parameters...)) {
    return std::int64_t{4} * resident_blocks(kernel, kThreads, 0);
}

// Whose noise a run over neurons holds.
struct Place {
    NoiseAddress address;
    std::uint32_t column;
};

struct GivenColumns {
    NoiseAddress address;
    const std::uint32_t* columns;

    __device__ Place operator()(std::int64_t run) const { return {address, columns[run]}; }
};

struct EveryColumn {
    const std::uint64_t* seeds;
    nfd_fast::Stream tag;
    std::int64_t columns;

    __device__ Place operator()(std::int64_t run) const {
        return {noise_address(seeds[run / columns], tag, 1),
                static_cast<std::uint32_t>(run % columns)};
    }
};

// out (runs, size): a thread makes whole Philox blocks, four neurons each. Key and column, and
// where 16 bytes may be stored at once, are found once per run.
template <class T, class PlaceOf>
__global__ void __launch_bounds__(kThreads)
    run_kernel(PlaceOf place_of, std::int64_t runs, std::int64_t size, T* out) {
    // As in a counter, 32 bits number the blocks of a run.
    const auto blocks = static_cast<std::uint32_t>((size + 3) / 4);
    const std::uint32_t step = gridDim.x * blockDim.x;
    for (std::int64_t run = std::int64_t{blockIdx.y} * blockDim.y + threadIdx.y; run < runs;
         run += std::int64_t{gridDim.y} * blockDim.y) {
        const Place place = place_of(run);
        const auto words = [&](std::uint32_t block) {
            return four_words(place.address, block, place.column);
        };
        T* const to = out + run * size;
        std::uint32_t block = blockIdx.x * blockDim.x + threadIdx.x;
        // Stored in one piece: all but the last block, or none.
        const std::uint32_t whole = aligned(to) ? static_cast<std::uint32_t>(size / 4) : 0;
        if constexpr (sizeof(Four<T>) == kSectorBytes) {
            // By warps that lie along the run, as long as all of their lanes are in it.
            const std::uint32_t lanes_left = kWarp - threadIdx.x % kWarp;
            const std::uint32_t end = blockDim.x % kWarp == 0 ? whole : 0;
            for (; block + lanes_left <= end; block += step) {
                store_sectors(words(block), to + 4 * std::int64_t{block});
            }
        } else {
            for (; block < whole; block += step) {
                reinterpret_cast<Four<T>*>(to)[block] = made_of<T>(words(block));
            }
        }
        for (; block < blocks; block += step) {
            const std::int64_t at = 4 * std::int64_t{block};
            store(made_of<T>(words(block)), to + at, size - at);
        }
    }
}

template <class T, class PlaceOf>
void fill_runs(PlaceOf place_of, std::int64_t runs, std::int64_t size, T* out,
               cudaStream_t stream) {
    if (runs == 0 || size == 0) return;
    const std::int64_t blocks = ceil_div(size, 4);
    // Short runs share a block of threads. A warp's threads store side by side; more warps join
    // them where each still takes several turns.
    unsigned along = 1;
    while (along < kThreads && (along < kWarp ? along : 8 * along) < blocks) along *= 2;
    const unsigned across = kThreads / along;
    const auto kernel = run_kernel<T, PlaceOf>;
    const std::int64_t most = enough_blocks(kernel);
    const std::int64_t grid_y = std::min(ceil_div(runs, across), most);
    const std::int64_t grid_x = std::min(ceil_div(blocks, along), ceil_div(most, grid_y));
    launch(kernel, dim3(static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y)),
           dim3(along, across), 0, stream, false, place_of, runs, size, out);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    box_muller_kernel(const std::uint32_t* words, std::int64_t blocks, T* out) {
    const std::int64_t block = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (block >= blocks) return;
    Four<std::uint32_t> four;
    for (int i = 0; i < 4; ++i) four.value[i] = words[4 * block + i];
    store(made_of<T>(four), out + 4 * block, 4);
}

// A thread fills four rows, which share Philox blocks, of `kColumns` columns of one matrix.
template <class T, int kColumns>
__global__ void __launch_bounds__(kThreads)
    matrix_kernel(const std::uint64_t* seeds, nfd_fast::Stream tag, std::int64_t layers,
                  std::int64_t matrices, std::int64_t rows, std::int64_t columns, std::int64_t fine,
                  T normalization, T* out) {
    const std::int64_t steps = columns / kColumns;
    const std::int64_t at = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    const std::int64_t group = at / steps, column = at % steps * kColumns;
    if (4 * group >= rows) return;
    for (std::int64_t matrix = blockIdx.y; matrix < matrices; matrix += gridDim.y) {
        const std::uint64_t seed = seeds[matrix / layers];
        const std::int64_t layer = matrix % layers;
        Four<T> sum[kColumns];
        NFD_FAST_UNROLL
        for (auto& four : sum) {
            for (T& value : four.value) value = -T(0);  // +0 would lose the sign of a zero
        }
        for (std::int64_t s = 1; s <= fine; ++s) {
            const NoiseAddress address = noise_address(seed, tag, layer * fine + s);
            NFD_FAST_UNROLL
            for (int j = 0; j < kColumns; ++j) {
                const Four<T> increment =
                    made_of<T>(four_words(address, static_cast<std::uint32_t>(group),
                                          static_cast<std::uint32_t>(column + j)));
                for (int row = 0; row < 4; ++row) sum[j].value[row] += increment.value[row];
            }
        }
        T* block = out + (matrix * rows + 4 * group) * columns + column;
        NFD_FAST_UNROLL
        for (int row = 0; row < 4; ++row) {
            if (4 * group + row >= rows) break;
            Four<T> line{};
            NFD_FAST_UNROLL
            for (int j = 0; j < kColumns; ++j) line.value[j] = normalization * sum[j].value[row];
            store(line, block + row * columns, kColumns);
        }
    }
}

template <class T, int kColumns>
void fill_matrices_by(const std::uint64_t* seeds, int replicas, nfd_fast::Stream tag,
                      std::int64_t layers, std::int64_t rows, std::int64_t columns,
                      std::int64_t fine, T* out, cudaStream_t stream) {
    const std::int64_t matrices = replicas * layers;
    const std::int64_t items = ceil_div(rows, 4) * (columns / kColumns);
    const auto kernel = matrix_kernel<T, kColumns>;
    const std::int64_t grid_x = ceil_div(items, kThreads);
    const std::int64_t grid_y = std::min(matrices, ceil_div(enough_blocks(kernel), grid_x));
    launch(kernel, dim3(static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y)),
           dim3(kThreads), 0, stream, false, seeds, tag, layers, matrices, rows, columns, fine,
           static_cast<T>(1 / std::sqrt(static_cast<double>(fine))), out);
}

}  // namespace

void words(NoiseAddress address, const std::uint32_t* columns, std::int64_t count,
           std::int64_t size, std::uint32_t* out, cudaStream_t stream) {
    fill_runs(GivenColumns{address, columns}, count, size, out, stream);
}

template <class T>
void normals(NoiseAddress address, const std::uint32_t* columns, std::int64_t count,
             std::int64_t size, T* out, cudaStream_t stream) {
    fill_runs(GivenColumns{address, columns}, count, size, out, stream);
}

template <class T>
void box_muller(const std::uint32_t* words, std::int64_t blocks, T* out, cudaStream_t stream) {
    if (blocks == 0) return;
    launch(box_muller_kernel<T>, dim3(static_cast<unsigned>(ceil_div(blocks, kThreads))),
           dim3(kThreads), 0, stream, false, words, blocks, out);
}

template <class T>
void fill_matrices(const std::uint64_t* seeds, int replicas, nfd_fast::Stream tag,
                   std::int64_t layers, std::int64_t rows, std::int64_t columns, std::int64_t fine,
                   T* out, cudaStream_t stream) {
    if (replicas == 0 || layers == 0 || rows == 0 || columns == 0) return;
    const auto fill = columns % 4 == 0 ? fill_matrices_by<T, 4> : fill_matrices_by<T, 1>;
    fill(seeds, replicas, tag, layers, rows, columns, fine, out, stream);
}

template <class T>
void fill_vectors(const std::uint64_t* seeds, int replicas, nfd_fast::Stream tag,
                  std::int64_t columns, std::int64_t width, T* out, cudaStream_t stream) {
    fill_runs(EveryColumn{seeds, tag, columns}, replicas * columns, width, out, stream);
}

#define NFD_FAST_INSTANTIATE(T)                                                                  \
    template void normals<T>(NoiseAddress, const std::uint32_t*, std::int64_t, std::int64_t, T*, \
                             cudaStream_t);                                                      \
    template void box_muller<T>(const std::uint32_t*, std::int64_t, T*, cudaStream_t);           \
    template void fill_matrices<T>(const std::uint64_t*, int, nfd_fast::Stream, std::int64_t,    \
                                   std::int64_t, std::int64_t, std::int64_t, T*, cudaStream_t);  \
    template void fill_vectors<T>(const std::uint64_t*, int, nfd_fast::Stream, std::int64_t,     \
                                  std::int64_t, T*, cudaStream_t);
NFD_FAST_INSTANTIATE(float)
NFD_FAST_INSTANTIATE(double)
#undef NFD_FAST_INSTANTIATE

}  // namespace nfd_fast::cuda
