// What the conditional engine remembers of each layer in place of its matrix: layer_algebra.hpp's
// memory, with the bases and their images.
#pragma once

#include <cstdint>

#include "nfd_fast/layer_algebra.hpp"
#include "training/arena.hpp"
#include "training/problem.hpp"
#include "training/state.hpp"

namespace nfd_fast {

template <class T>
struct ConditionalState : LayerMemory {
    std::int64_t tile_width, tiles;        // neurons per tile, tiles of a layer
    std::int64_t tiles_per_chunk, chunks;  // of a reduction

    T* basis[2];   // (L, tiles, capacity, tile) per side
    T* images[2];  // (L, tiles, capacity, tile)

    // Sets the sizes and cuts the arrays from the arena.
    void lay_out(const Problem<T>& p, Arena& arena);

    // Nothing asked, nothing learned.
    void clear(const Problem<T>& p);

    // What a later run must know, see state.hpp. Throws std::invalid_argument for a rank that is
    // out of range.
    void transfer(const Problem<T>& p, StateStream& stream);

    // A tile of a basis or its images: (capacity, tile).
    T* tile_of(T* array, std::int64_t layer, std::int64_t tile) const {
        return array + ((layer - 1) * tiles + tile) * capacity * tile_width;
    }
};

}  // namespace nfd_fast
