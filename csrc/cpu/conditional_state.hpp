// What the conditional engine remembers of each layer in place of its matrix (DESIGN 2).
//
// All that the algorithm ever asks of the initial matrix W of a layer (here W/sqrt(n)) is W a for a
// few features a and W^T g for a few adjoints g, and each answer can be drawn conditionally on the
// earlier ones. A layer keeps two sides: the features asked so far with their images under W, and
// the adjoints with their images under W^T. Each side is
//     basis U (n x p), images V (n x p), both of order one per entry,
// with inner products x.y = sum_i x_i y_i / n, so that a direction u with u.u = 1 has an image of
// independent N(0, 1) entries. The learned part of the matrix is Q D U^T/n with a small D, for the
// basis Q of the adjoints and U of the features.
//
// Exactness in the stored precision. A stored u is what was left of a column x, rounded: for a
// nearly dependent column the rounding, as large as eps |x|, is not small against what was left. So
// nothing assumes that U is orthonormal: U.U of the *stored* columns is measured in float64 when
// they are made, kept as its Cholesky factor R, and the image of a stored column that leans on
// earlier ones by U g, with length kappa on the new direction, is W U g + kappa v: images
// W U = V Gamma with a small upper triangular Gamma.
#pragma once

#include <cstdint>

#include "nfd_fast/small_matrix.hpp"
#include "training/arena.hpp"
#include "training/problem.hpp"
#include "training/state.hpp"

namespace nfd_fast {

enum Side { kFeatures, kAdjoints };

inline Side opposite(Side side) { return side == kFeatures ? kAdjoints : kFeatures; }

template <class T>
struct ConditionalState {
    std::int64_t capacity;                 // most columns of a basis
    std::int64_t tile_width, tiles;        // neurons per tile, tiles of a layer
    std::int64_t tiles_per_chunk, chunks;  // of a reduction

    // Per side and layer.
    T* basis[2];             // (L, tiles, capacity, tile)
    T* images[2];            // (L, tiles, capacity, tile)
    double* factor[2];       // (L, capacity, capacity) R, R^T R = U.U
    double* gamma[2];        // (L, capacity, capacity)
    double* cross[2];        // (L, capacity, capacity) other images.U, rows of the other side
    double* along_other[2];  // (L, capacity, capacity) W U along the other side: Q times this
    std::int64_t* ranks[2];  // (L)
    // Per layer.
    double* learned;   // (L, capacity, capacity) D, rows adjoints, columns features
    double* features;  // (L, capacity, B) coefficients of phi(H_{l-1}) in the stored basis

    // Sets the sizes and cuts the arrays from the arena.
    void lay_out(const Problem<T>& p, Arena& arena);

    // Nothing asked, nothing learned.
    void clear(const Problem<T>& p);

    // What a later run must know, see state.hpp. Throws std::invalid_argument for a rank that is
    // out of range.
    void transfer(const Problem<T>& p, StateStream& stream);

    // The small matrix of layer 1 ... L in an array of them.
    Small square(double* array, std::int64_t layer) const {
        return {array + (layer - 1) * capacity * capacity, capacity};
    }
    // A tile of a basis or its images: (capacity, tile).
    T* tile_of(T* array, std::int64_t layer, std::int64_t tile) const {
        return array + ((layer - 1) * tiles + tile) * capacity * tile_width;
    }
};

}  // namespace nfd_fast
