// What a layer remembers and what a step works out, for the algebra of layer_algebra.hpp: small
// matrices. Their letters are explained there.
#pragma once

#include <cstdint>

#include "nfd_fast/config.hpp"
#include "nfd_fast/small_matrix.hpp"

namespace nfd_fast {

enum Side { kFeatures, kAdjoints };

NFD_FAST_HD constexpr Side opposite(Side side) { return side == kFeatures ? kAdjoints : kFeatures; }

inline namespace NFD_FAST_TARGET {

// What the layers remember besides bases and images, which are as long as the layers are wide.
struct LayerMemory {
    std::int64_t capacity;  // most columns of a basis
    std::int64_t stride;    // from one row of a small matrix to the next

    // Per side and layer.
    double* factor[2];       // (L, capacity, capacity) R, R^T R = U.U
    double* inverse[2];      // (L, capacity, capacity) (U.U)^-1, or null: then R is solved for
    double* gamma[2];        // (L, capacity, capacity)
    double* cross[2];        // (L, capacity, capacity) other images.U, rows of the other side
    double* along_other[2];  // (L, capacity, capacity) W U along the other side: Q times this
    std::int64_t* ranks[2];  // (L)
    // Per layer.
    double* learned;   // (L, capacity, capacity) D, rows adjoints, columns features
    double* features;  // (L, capacity, B) coefficients of phi(H_{l-1}) in the stored basis

    // The small matrix of layer 1 ... L in an array of them.
    NFD_FAST_HD Small square(double* array, std::int64_t layer) const {
        return {array + (layer - 1) * capacity * stride, stride};
    }
};

// What the algebra must know of the problem.
struct LayerRules {
    std::int64_t width, batch;
    double branch_factor;  // beta
    double tolerance;      // shares of a column below it are no direction
    bool reused;           // whether W is read in both directions
    bool coupled;          // whether the part of W X along the other side is wanted
    bool learns;           // whether the hidden weights move
    // Rows of the coefficients in T are filled up to a multiple of this, for whole vectors at a
    // time. What fills them is arbitrary.
    std::int64_t padding;

    // Of the kernels of a pass; `keep`: whether later passes will ask about its blocks.
    Side side;
    bool keep;

    NFD_FAST_HD std::int64_t padded(std::int64_t count) const {
        return (count + padding - 1) / padding * padding;
    }
};

// The inner products of a block Z and of the noise xi with what a layer remembers, in one run of
// numbers.
struct Products {
    double* b;   // (p, B) U.Z
    double* s;   // (q, B) other images.Z
    double* z;   // (q, B) Q.xi
    double* zz;  // (B, B) Z.Z

    NFD_FAST_HD Products(double* data, std::int64_t p, std::int64_t q, std::int64_t batch)
        : b(data), s(b + p * batch), z(s + q * batch), zz(z + q * batch) {}
    // In doubles where a problem is only estimated.
    template <class Number>
    NFD_FAST_HD static Number count(Number p, Number q, Number batch) {
        return (p + 2 * q + batch) * batch;
    }
};

// What a step works out, for one layer and one block.
template <class T>
struct Step {
    std::int64_t p, q, rank;  // earlier columns of this side and of the other, new directions
    bool refined;             // whether Z differs from X
    bool uses_other;          // whether the answer has a part along the other side
    double *b, *c;            // (p, B) U.X and the coefficients of Z, at last of X
    double *s, *z;            // (q, B) other images.Z and other basis.xi
    double *xx, *e;           // (B, B) X.X and the residual Gram
    double* t;                // (rank, B) factor T of Z, at last of X
    double *a, *m;            // (p, B), (B, B) X = U A + Z M
    double* seen;             // (q, rank) t = Q.(W u)
    double* k;                // (q, rank)
    double* gram_solved;      // (q, rank) (Q.Q)^-1 t
    double* new_cross;        // (q, rank) other images.u of the stored u
    double* other_cross;      // (q, rank) Q.v of the new images
    double* work;             // (2 max(p, q) + 4 B + 2, B)
    // What the sweep needs: which columns, and coefficients in T.
    std::int64_t* pivot;       // (B) which columns of Z are new directions
    bool* open;                // (B) whether a column of Z may hold a new direction
    T* from_basis;             // (p, rank) -c at the pivots
    T* inverse;                // (rank, rank) T^-1 at the pivots
    T* image_shift;            // (q, rank) k
    T* images;                 // (p, B) beta Gamma c
    T* other;                  // (q, B) beta (k T + D U.X)
    T* noise;                  // (B, B) beta T, by noise column
    T* coupling;               // (q, B) beta times the part of W X along the other side
    T *off_basis, *off_block;  // (p, B), (B, B) minus F and minus the transpose of N - 1

    // Cuts the arrays from an arena, for bases of `capacity` columns and rows of the coefficients
    // in T that are filled up; what the sweep needs comes last, from the returned place on.
    template <class Arena>
    NFD_FAST_HD double lay_out(Arena& arena, std::int64_t capacity, std::int64_t batch,
                               std::int64_t padded_batch) {
        const double columns = static_cast<double>(capacity) * static_cast<double>(batch);
        const double square = static_cast<double>(batch) * static_cast<double>(batch);
        double** const of_columns[] = {&a,    &b, &c,           &s,         &z,
                                       &seen, &k, &gram_solved, &new_cross, &other_cross};
        for (double** array : of_columns) arena.take(*array, columns);
        double** const squares[] = {&xx, &e, &t, &m};
        for (double** array : squares) arena.take(*array, square);
        arena.take(work, 2 * columns + 4 * square + 2 * static_cast<double>(batch));
        const double applied = arena.used();
        arena.take(pivot, static_cast<double>(batch));
        arena.take(open, static_cast<double>(batch));
        T** const coefficients[] = {&from_basis, &image_shift, &images,
                                    &other,      &coupling,    &off_basis};
        const double row = static_cast<double>(padded_batch);
        for (T** array : coefficients) arena.take(*array, static_cast<double>(capacity) * row);
        T** const small[] = {&inverse, &noise, &off_block};
        for (T** array : small) arena.take(*array, static_cast<double>(batch) * row);
        return applied;
    }
};

}  // namespace NFD_FAST_TARGET
}  // namespace nfd_fast
