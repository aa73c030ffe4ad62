// The sizes of a layer's memory, its place in the arena, and its way to a later run.

#include "cpu/conditional_state.hpp"

#include <algorithm>
#include <stdexcept>

namespace nfd_fast {
namespace {

// Most neurons per tile. A tile holds all columns of one array of a layer, neuron-contiguous: a
// sweep then reads a few long runs instead of one stream per column, which the prefetchers cannot
// follow, and asks for the next tile as it goes. Half as large, the ends of the runs take a
// twentieth longer at B = 4 and a tenth at B = 1.
constexpr std::int64_t kTile = 1024;

// Most chunks of a reduction. A chunk's neurons depend on the width alone, which fixes the shape of
// every sum.
constexpr std::int64_t kMostChunks = 256;

}  // namespace

template <class T>
void ConditionalState<T>::lay_out(const Problem<T>& p, Arena& arena) {
    const std::int64_t width = p.stack.width, batch = p.stack.batch;
    capacity = stride = std::min((p.first_update + p.updates) * batch, width);
    tiles = (width + kTile - 1) / kTile;
    tile_width =
        ((width + tiles - 1) / tiles + 15) / 16 * 16;  // alike, so that little is filled up
    tiles_per_chunk = (tiles + kMostChunks - 1) / kMostChunks;
    chunks = (tiles + tiles_per_chunk - 1) / tiles_per_chunk;

    const double layers = static_cast<double>(p.stack.depth);
    const double columns = static_cast<double>(capacity);
    const double padded = static_cast<double>(tiles * tile_width);
    const double square = layers * columns * columns;
    for (const Side side : {kFeatures, kAdjoints}) {
        arena.take(basis[side], layers * columns * padded);
        arena.take(images[side], layers * columns * padded);
        arena.take(factor[side], square);
        inverse[side] = nullptr;  // a triangular solve is as fast, and bits are kept
        arena.take(gamma[side], square);
        arena.take(cross[side], p.decoupled ? 0 : square);
        arena.take(along_other[side], p.keep_coupling ? square : 0);
        arena.take(ranks[side], layers);
    }
    arena.take(learned, square);
    arena.take(features, layers * columns * static_cast<double>(batch));
}

template <class T>
void ConditionalState<T>::clear(const Problem<T>& p) {
    const std::int64_t count = p.stack.depth * capacity * capacity;
    for (const Side side : {kFeatures, kAdjoints}) {
        std::fill_n(ranks[side], p.stack.depth, 0);
        if (along_other[side]) std::fill_n(along_other[side], count, 0.0);
    }
    std::fill_n(learned, count, 0.0);
}

template <class T>
void ConditionalState<T>::transfer(const Problem<T>& p, StateStream& stream) {
    stream.numbers("feature_ranks", ranks[kFeatures], p.stack.depth);
    stream.numbers("adjoint_ranks", ranks[kAdjoints], p.stack.depth);
    for (const Side side : {kFeatures, kAdjoints}) {
        const bool first = side == kFeatures;
        for (std::int64_t layer = 1; layer <= p.stack.depth; ++layer) {
            const std::int64_t rank = ranks[side][layer - 1],
                               across = ranks[opposite(side)][layer - 1];
            if (rank < 0 || rank > capacity || across < 0 || across > capacity) {
                throw std::invalid_argument("a rank is out of range");
            }
            // Column by column, whatever the tiles are: a file outlives their size.
            for (std::int64_t j = 0; j < rank; ++j) {
                for (std::int64_t tile = 0; tile < tiles; ++tile) {
                    const std::int64_t count =
                        std::min(tile_width, p.stack.width - tile * tile_width);
                    stream.numbers(first ? "features" : "adjoints",
                                   tile_of(basis[side], layer, tile) + j * tile_width, count);
                    stream.numbers(first ? "feature_images" : "adjoint_images",
                                   tile_of(images[side], layer, tile) + j * tile_width, count);
                }
            }
            const auto matrix = [&](const char* name, double* array, std::int64_t rows,
                                    std::int64_t columns) {
                if (!array) return;
                const Small m = square(array, layer);
                stream.numbers(name, m.data, 0);  // that it is kept is told by its name
                for (std::int64_t i = 0; i < rows; ++i) {
                    stream.numbers(name, &m(i, 0), columns);
                }
            };
            matrix(first ? "feature_factor" : "adjoint_factor", factor[side], rank, rank);
            matrix(first ? "feature_gamma" : "adjoint_gamma", gamma[side], rank, rank);
            matrix(first ? "feature_cross" : "adjoint_cross", cross[side], across, rank);
            matrix(first ? "feature_coupling" : "adjoint_coupling", along_other[side], across,
                   rank);
            if (!first) matrix("learned", learned, rank, across);
        }
    }
}

template struct ConditionalState<float>;
template struct ConditionalState<double>;

}  // namespace nfd_fast
