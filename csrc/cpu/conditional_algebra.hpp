// The algebra of one layer step of the conditional engine: small matrices, no neurons (DESIGN 2).
//
// A new block X (n x B) is taken apart along what the layer remembers (conditional_state.hpp) and
// answered so:
//     c = (U.U)^-1 U.X        E = X.X - c^T (U.U) c = T^T T       new directions u = (X - U c) T^-1
//     t = (image of the other side's basis Q under W^T).u = Q.(W u), known
//     W u = xi + Q k          k = (Q.Q)^-1 (t - Q.xi)             xi fresh, of the noise contract
//     W X = (W U) c + (W u) T
// The coefficients that are applied in T, the type of the neurons, are rounded first and their
// rounded values used in the algebra.
//
// Nearly dependent blocks. E is a difference, so that a residual much shorter than its column is
// badly known from it, and X - U c in T even worse. Such a block is taken apart in rounds: in place
// of X stands Z with X = U A + Z M, at first Z = X; where a column is too close to what comes
// before it, one more sweep replaces each column by what is left of it, as far as that is known,
// and measures again. What ends up as a stored direction was always measured, never inferred; what
// is shorter than the tolerance is none.
#pragma once

#include <cstdint>

#include "cpu/conditional_state.hpp"
#include "cpu/layers.hpp"
#include "nfd_fast/small_matrix.hpp"
#include "training/arena.hpp"
#include "training/problem.hpp"

namespace nfd_fast {

// What a step works out, for one layer and one block, per team member.
template <class T>
struct Step {
    std::int64_t p, q, rank;  // earlier columns of this side and of the other, new directions
    bool refined;             // whether Z differs from X
    bool uses_other;          // whether the answer has a part along the other side
    bool* open;               // (B) whether a column of Z may hold a new direction
    std::int64_t* pivot;      // (B) which columns of Z are new directions
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
    double* work;             // (max(p, q) + B, B)
    // In T, as the sweep applies them.
    T* from_basis;             // (p, rank) -c at the pivots
    T* inverse;                // (rank, rank) T^-1 at the pivots
    T* image_shift;            // (q, rank) k
    T* images;                 // (p, B) beta Gamma c
    T* other;                  // (q, B) beta (k T + D U.X)
    T* noise;                  // (B, B) beta T, by noise column
    T* coupling;               // (q, B) beta times the part of W X along the other side
    T *off_basis, *off_block;  // (p, B), (B, B) minus F and minus the transpose of N - 1

    // Cuts the arrays from the arena, for bases of `capacity` columns.
    void lay_out(Arena& arena, std::int64_t capacity, std::int64_t batch);
};

// The inner products of a block Z and of the noise xi with what a layer remembers, in one run of
// numbers.
struct Products {
    double* b;   // (p, B) U.Z
    double* s;   // (q, B) other images.Z
    double* z;   // (q, B) Q.xi
    double* zz;  // (B, B) Z.Z

    Products(double* data, std::int64_t p, std::int64_t q, std::int64_t batch)
        : b(data), s(b + p * batch), z(s + q * batch), zz(z + q * batch) {}
    static std::int64_t count(std::int64_t p, std::int64_t q, std::int64_t batch) {
        return (p + 2 * q + batch) * batch;
    }
};

// The steps of one pass, layer after layer. Each member of a team has its own, on a Step of its
// own, and works out the same numbers; what the layer remembers is changed by one of them.
template <class T>
class LayerAlgebra {
  public:
    // `keep`: whether later passes will ask about the blocks.
    LayerAlgebra(ConditionalState<T>& state, const Problem<T>& problem, Side side, bool keep,
                 Step<T>& step)
        : state_(state),
          problem_(problem),
          side_(side),
          keep_(keep),
          batch_(problem.stack.batch),
          step_(step) {}

    bool reused() const { return !problem_.decoupled; }
    bool coupled() const { return reused() && problem_.keep_coupling; }

    // Takes the block of a layer apart. False if a column is too close to what comes before it;
    // then separate() says what a sweep takes off each column, and take_rest_apart() goes on with
    // what that left.
    bool take_apart(std::int64_t layer, Products of_block);
    void separate();
    bool take_rest_apart(Products of_rest);

    // Then, what the sweep needs to make the new columns and the next features or adjoints.
    void answer();

    // Mean over neurons and batch of the square of the answer's part along the other side.
    double coupling() const;

    // Makes the new columns part of what the layer remembers. `measured` has (p, rank) U.u and
    // (rank, rank) u.u of the columns as they are stored, and is overwritten.
    void append(double* measured);

    // After append(), in a backward pass: the update of the layer's weights.
    void learn(Gradient gradient);

  private:
    bool project(Products of_z);
    double smallest_share(std::int64_t j) const;
    void directions();
    void new_images();
    void compose();
    void round_coefficients();

    bool forward() const { return side_ == kFeatures; }
    Side other() const { return opposite(side_); }
    Small of_layer(double* array) const { return state_.square(array, layer_); }
    // Of the block in the stored basis, (rank of the layer, B), from append() on. Those of the
    // features wait for the backward pass.
    Small coefficients(Side side) const {
        const std::int64_t of_features = (layer_ - 1) * state_.capacity * batch_;
        return {side == kFeatures ? state_.features + of_features : step_.work, batch_};
    }

    ConditionalState<T>& state_;
    const Problem<T>& problem_;
    const Side side_;
    const bool keep_;
    const std::int64_t batch_;
    Step<T>& step_;
    std::int64_t layer_ = 0;
};

}  // namespace nfd_fast
