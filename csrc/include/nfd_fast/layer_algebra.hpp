// The conditional representation of one layer: what stands in place of its matrix, and the algebra
// of one step (DESIGN 2). Small matrices, no neurons.
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
//
// A new block X (n x B) is taken apart along what the layer remembers and answered so:
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
//
// Who computes. The algebra is written once for a `Crew`: one thread, or threads of a GPU that work
// on the same arrays. All members call every function, in the same order, and a crew provides
//     each(count, f), each(rows, columns, f)    calls f(i), f(i, j), shared out, then waits for all
//     sum(count, f)                             of f(i), in an order of its own but a fixed one
//     alone(f)                                  f() by one member, then waits for all
//     sync()                                    waits for all
//     stopped()         whether to give up: then nobody acts on what the algebra says, or remembers
//     multiply(transpose, rows, columns, inner, factor, a, b, add, c)   C = factor op(A) B (+ C)
//     solve(transpose, size, columns, r, b)     B <- op(R)^-1 B, R upper triangular
#pragma once

#include <cmath>
#include <cstdint>

#include "nfd_fast/layer_memory.hpp"

namespace nfd_fast {

inline namespace NFD_FAST_TARGET {

// After so many rounds a block is given up. One leaves 1e-4 of what a column shares with those
// before it, so that 4 are enough for tolerances down to 1e-16, and as many again for the columns
// they lean on.
inline constexpr int kMostRounds = 32;

// The steps of one pass, layer after layer, each on the same Step. What the layer remembers is
// changed by append() and learn() alone.
template <class T, class Crew>
class LayerAlgebra {
  public:
    NFD_FAST_HD LayerAlgebra(const LayerMemory& memory, const LayerRules& rules, Crew crew,
                             Step<T>& step)
        : memory_(memory), rules_(rules), batch_(rules.batch), crew_(crew), step_(step) {}

    // Takes the block of a layer apart. False if a column is too close to what comes before it;
    // then separate() says what a sweep takes off each column, and take_rest_apart() goes on with
    // what that left.
    NFD_FAST_HD_OUTLINE bool take_apart(std::int64_t layer, Products of_block);
    NFD_FAST_HD_OUTLINE void separate();
    NFD_FAST_HD_OUTLINE bool take_rest_apart(std::int64_t layer, Products of_rest);

    // Then, what the sweep needs to make the new columns and the next features or adjoints.
    NFD_FAST_HD_OUTLINE void answer();

    // Mean over neurons and batch of the square of the answer's part along the other side.
    NFD_FAST_HD_OUTLINE double coupling(std::int64_t layer);

    // Makes the new columns of the layer part of what it remembers. `measured` has (p, rank) U.u
    // and (rank, rank) u.u of the columns as they are stored, and is overwritten.
    NFD_FAST_HD_OUTLINE void append(std::int64_t layer, double* measured);

    // After append(), in a backward pass: the update of the layer's weights,
    //     D -= step sum_b w_b gamma_b alpha_b^T
    // for the coefficients of the batch's adjoints and features.
    NFD_FAST_HD_OUTLINE void learn(const double* sample_weights, double step);

  protected:
    // How much of its square a column of a block must keep to be a new direction, as shares of the
    // square of the numbers that what is kept is the rest of. Sums in float64 over p terms know it
    // to some p eps = 1e-14 of that: kKnown, generously. A direction is there if it is known to
    // 1e-4 of itself: kNew. It is stored if the rounding of the column is still small against it:
    // off by eps/sqrt(kClearlyNew) = 32 eps of the dtype, at most. (A length of 3 %: columns of
    // different samples keep more, those of one sample whose weights have moved by a small step
    // less.)
    static constexpr double kKnown = 1e-12;
    static constexpr double kNew = 1e-8;
    static constexpr double kClearlyNew = 1e-3;
    // What is not stored need not be well conditioned.
    NFD_FAST_HD double clearly() const { return rules_.keep ? kClearlyNew : kNew; }
    // The square that a column must have, for what smallest_share() says.
    NFD_FAST_HD double least(double square) const {
        // Squared: 16 times the smallest normal float, far from where the inverse of a direction's
        // length overflows; in double, far from where a square loses digits.
        constexpr double tiny = sizeof(T) == sizeof(float) ? 0x1p-244 : 1e-290;
        const double smallest = rules_.tolerance * rules_.tolerance * square;
        return smallest > tiny ? smallest : tiny;
    }
    // How many new directions there may be.
    NFD_FAST_HD std::int64_t most_new(std::int64_t p) const {
        const std::int64_t places = (rules_.keep ? memory_.capacity : rules_.width) - p;
        return batch_ < places ? batch_ : places;
    }

    NFD_FAST_HD_OUTLINE bool project(Products of_z);
    NFD_FAST_HD_OUTLINE double smallest_share(std::int64_t j) const;
    NFD_FAST_HD_OUTLINE void directions();
    NFD_FAST_HD_OUTLINE void new_images();
    NFD_FAST_HD_OUTLINE void compose();
    NFD_FAST_HD_OUTLINE void measure_images();
    NFD_FAST_HD_OUTLINE void extend_inverse(Small g, Small own);
    NFD_FAST_HD_OUTLINE void round_coefficients();

    // A forward pass adds its increment to the features itself; a backward pass multiplies by phi'
    // first and takes beta along there.
    NFD_FAST_HD double applied_factor() const { return forward() ? rules_.branch_factor : 1.0; }
    NFD_FAST_HD bool forward() const { return rules_.side == kFeatures; }
    NFD_FAST_HD Side side() const { return rules_.side; }
    NFD_FAST_HD Side other() const { return opposite(rules_.side); }
    NFD_FAST_HD Small of_layer(double* array) const { return memory_.square(array, layer_); }
    // Of the block in the stored basis, (rank of the layer, B), from append() on. Those of the
    // features wait for the backward pass.
    NFD_FAST_HD Small coefficients(Side side) const {
        const std::int64_t of_features = (layer_ - 1) * memory_.capacity * batch_;
        return {side == kFeatures ? memory_.features + of_features : step_.work, batch_};
    }

    NFD_FAST_HD void turn_to(std::int64_t layer) {
        crew_.alone([&] { layer_ = layer; });
    }
    template <class From, class To>
    NFD_FAST_HD void copy(const From* from, std::int64_t count, To* to) const {
        crew_.each(count, [=](std::int64_t i) { to[i] = static_cast<To>(from[i]); });
    }
    // The first `columns` of rows that are so far apart.
    template <class From, class To>
    NFD_FAST_HD void copy_rows(std::int64_t rows, std::int64_t columns, const From* from,
                               std::int64_t from_stride, To* to, std::int64_t to_stride) const {
        crew_.each(rows, columns, [=](std::int64_t i, std::int64_t j) {
            to[i * to_stride + j] = static_cast<To>(from[i * from_stride + j]);
        });
    }
    template <class Number>
    NFD_FAST_HD void fill(Number* to, std::int64_t count, Number value) const {
        crew_.each(count, [=](std::int64_t i) { to[i] = value; });
    }
    // The coefficients of blocks along the basis of a side from their inner products with it.
    NFD_FAST_HD void solve_gram(Side side, std::int64_t size, std::int64_t columns, Small products,
                                Small c) const {
        if (memory_.inverse[side]) {
            crew_.multiply(Transpose::no, size, columns, size, 1.0, of_layer(memory_.inverse[side]),
                           products, false, c);
            return;
        }
        const Small r = of_layer(memory_.factor[side]);
        copy_rows(size, columns, products.data, products.stride, c.data, c.stride);
        crew_.solve(Transpose::yes, size, columns, r, c);
        crew_.solve(Transpose::no, size, columns, r, c);
    }

    const LayerMemory& memory_;
    const LayerRules& rules_;
    const std::int64_t batch_;
    const Crew crew_;
    Step<T>& step_;
    std::int64_t layer_ = 0;
};

template <class T, class Crew>
NFD_FAST_HD_OUTLINE bool LayerAlgebra<T, Crew>::take_apart(std::int64_t layer, Products of_block) {
    turn_to(layer);
    crew_.alone([&] {
        step_.p = memory_.ranks[side()][layer - 1];
        step_.q = memory_.ranks[other()][layer - 1];
        step_.refined = false;
    });
    copy(of_block.b, step_.p * batch_, step_.b);
    copy(of_block.s, step_.q * batch_, step_.s);
    copy(of_block.z, step_.q * batch_, step_.z);
    copy(of_block.zz, batch_ * batch_, step_.xx);
    return project(of_block);
}

template <class T, class Crew>
NFD_FAST_HD_OUTLINE bool LayerAlgebra<T, Crew>::take_rest_apart(std::int64_t layer,
                                                                Products of_rest) {
    turn_to(layer);
    crew_.alone([&] { step_.refined = true; });
    copy(of_rest.s, step_.q * batch_, step_.s);
    return project(of_rest);
}

// Given the inner products of Z, the coefficients c along the basis and the new directions T among
// the columns; returns whether every column is settled. Every member decides for itself, from the
// same numbers.
template <class T, class Crew>
NFD_FAST_HD_OUTLINE bool LayerAlgebra<T, Crew>::project(Products of_z) {
    const std::int64_t p = step_.p;
    const Small c{step_.c, batch_}, e{step_.e, batch_};
    copy(of_z.zz, batch_ * batch_, step_.e);
    const Small r = of_layer(memory_.factor[side()]);
    copy(of_z.b, p * batch_, step_.c);
    crew_.solve(Transpose::yes, p, batch_, r, c);  // R^-T U.Z
    crew_.multiply(Transpose::yes, batch_, batch_, p, -1.0, c, c, true, e);
    crew_.solve(Transpose::no, p, batch_, r, c);

    const Small t{step_.t, batch_};
    double* const parts = step_.work;
    double* const lengths = step_.work + batch_;
    crew_.each(batch_, [&](std::int64_t j) { lengths[j] = ::sqrt(of_z.zz[j * batch_ + j]); });
    const std::int64_t most = most_new(p);
    bool settled = true;
    std::int64_t rank = 0;
    for (std::int64_t j = 0; j < batch_; ++j) {
        if (crew_.stopped()) {
            crew_.alone([&] { step_.rank = 0; });
            return true;
        }
        const double whole = of_z.zz[j * batch_ + j];
        const double smallest = least(smallest_share(j));
        // Written so that NaN counts as dependent: it is found and reported elsewhere.
        bool open = whole > smallest && rank < most;
        bool fresh = false;
        double left = 0;
        if (open) {
            // What is left of the square, and the square of the numbers it is what is left of:
            // lengths of the column and of its parts along the earlier ones.
            left = e(j, j);
            double size = lengths[j];
            crew_.each(rank, [&](std::int64_t i) { parts[i] = t(i, j); });
            for (std::int64_t i = rank; i-- > 0;) {
                const std::int64_t at = step_.pivot[i];
                const double part = parts[i] / t(i, at);
                left -= t(i, j) * t(i, j);
                size += ::fabs(part) * lengths[at];
                crew_.each(i, [&](std::int64_t l) { parts[l] -= t(l, at) * part; });
            }
            const double known = size * size;
            open = left + kKnown * known > smallest;
            if (open) {
                fresh = left > (kNew * known > smallest ? kNew * known : smallest);
                settled = settled && fresh && left > clearly() * known;
            }
        }
        crew_.alone([&] {
            step_.open[j] = open;
            if (fresh) step_.pivot[rank] = j;
        });
        if (!fresh) continue;
        // Row `rank` of the upper echelon T with T^T T = E on the columns chosen so far.
        const double diagonal = ::sqrt(left);
        crew_.each(batch_, [&](std::int64_t i) {
            double entry = i < j ? 0 : e(j, i);
            for (std::int64_t l = 0; l < rank && i > j; ++l) entry -= t(l, j) * t(l, i);
            t(rank, i) = i == j ? diagonal : entry / diagonal;
        });
        ++rank;
    }
    crew_.alone([&] { step_.rank = rank; });
    return settled;
}

// The square of a column of Z below which, times a share, nothing depends on it: it may stand for
// more of another column of X than of its own, by the square of its factor in M.
template <class T, class Crew>
NFD_FAST_HD_OUTLINE double LayerAlgebra<T, Crew>::smallest_share(std::int64_t j) const {
    double smallest = step_.xx[j * batch_ + j];
    for (std::int64_t k = 0; k < batch_ && step_.refined; ++k) {
        const double factor = step_.m[j * batch_ + k];
        const double square = step_.xx[k * batch_ + k];
        if (square < smallest * factor * factor) smallest = square / (factor * factor);
    }
    return smallest;
}

// Takes off every column of Z that may be new what lies along the basis and along the new
// directions among the columns before it, one column after the other, so that what is taken off is
// never longer than the column.
template <class T, class Crew>
NFD_FAST_HD_OUTLINE void LayerAlgebra<T, Crew>::separate() {
    const std::int64_t p = step_.p, square = batch_ * batch_;
    const std::int64_t row = rules_.padded(batch_);
    const Small t{step_.t, batch_}, m{step_.m, batch_};
    const auto identity = [&](Small a) {
        crew_.each(batch_, batch_,
                   [=](std::int64_t i, std::int64_t j) { a(i, j) = i == j ? 1.0 : 0.0; });
    };
    if (!step_.refined) {
        fill(step_.a, p * batch_, 0.0);
        identity(m);
    }
    // Z = Z' N + U F, with the rounded coefficients: X = U (A + F M) + Z' (N M).
    const Small f{step_.c, batch_}, unit{step_.work, batch_};
    identity(unit);
    fill(step_.off_block, batch_ * row, T(0));
    crew_.each(p, batch_, [&](std::int64_t i, std::int64_t j) {
        const T rounded = step_.open[j] ? static_cast<T>(f(i, j)) : T(0);
        step_.off_basis[i * row + j] = -rounded;
        f(i, j) = static_cast<double>(rounded);
    });
    crew_.each(step_.rank, batch_, [&](std::int64_t i, std::int64_t j) {
        const std::int64_t at = step_.pivot[i];
        if (!step_.open[j] || at >= j) return;
        const T rounded = static_cast<T>(t(i, j) / t(i, at));
        step_.off_block[j * row + at] = -rounded;
        unit(at, j) = static_cast<double>(rounded);
    });
    crew_.multiply(Transpose::no, p, batch_, batch_, 1.0, f, m, true, Small{step_.a, batch_});
    const Small next{step_.e, batch_};  // which has served
    crew_.multiply(Transpose::no, batch_, batch_, batch_, 1.0, unit, m, false, next);
    copy(step_.e, square, step_.m);
}

template <class T, class Crew>
NFD_FAST_HD_OUTLINE void LayerAlgebra<T, Crew>::answer() {
    directions();
    new_images();
    if (step_.refined) compose();
    round_coefficients();
}

// The new directions u = (Z - U c) T^-1, as the sweep makes them.
template <class T, class Crew>
NFD_FAST_HD_OUTLINE void LayerAlgebra<T, Crew>::directions() {
    const std::int64_t rank = step_.rank, row = rules_.padded(rank);
    const Small t{step_.t, batch_};
    const Small inverse{step_.e, batch_};  // which has served: T^-1 at the pivots
    const Small triangle{step_.work, batch_};
    crew_.each(rank, rank, [&](std::int64_t i, std::int64_t j) {
        triangle(i, j) = t(i, step_.pivot[j]);
        inverse(i, j) = i == j ? 1.0 : 0.0;
    });
    crew_.solve(Transpose::no, rank, rank, triangle, inverse);
    crew_.each(rank, rank, [&](std::int64_t i, std::int64_t j) {
        step_.inverse[i * row + j] = static_cast<T>(inverse(i, j));
    });
    crew_.each(step_.p, rank, [&](std::int64_t i, std::int64_t j) {
        step_.from_basis[i * row + j] = static_cast<T>(-step_.c[i * batch_ + step_.pivot[j]]);
    });
}

// What is known of the images of the new directions, and how they are made.
template <class T, class Crew>
NFD_FAST_HD_OUTLINE void LayerAlgebra<T, Crew>::new_images() {
    const std::int64_t p = step_.p, q = step_.q, rank = step_.rank;
    if (!rules_.reused || q == 0) return;
    // Other images.u = (s - cross c) T^-1.
    const Small rest{step_.k, rank}, along{step_.work, rank}, seen{step_.seen, rank};
    const Small of_u{step_.other_cross, rank};  // until measure_images()
    crew_.each(p, rank, [&](std::int64_t i, std::int64_t j) {
        along(i, j) = step_.c[i * batch_ + step_.pivot[j]];
    });
    crew_.each(q, rank, [&](std::int64_t i, std::int64_t j) {
        rest(i, j) = step_.s[i * batch_ + step_.pivot[j]];
    });
    crew_.multiply(Transpose::no, q, rank, p, -1.0, of_layer(memory_.cross[side()]), along, true,
                   rest);
    crew_.multiply(Transpose::no, q, rank, rank, 1.0, rest, Small{step_.e, batch_}, false, of_u);
    // t = Q.(W u) = Gamma^T (other images.u), for W^T Q = S Gamma.
    crew_.multiply(Transpose::yes, q, rank, q, 1.0, of_layer(memory_.gamma[other()]), of_u, false,
                   seen);
    // k = (Q.Q)^-1 (t - Q.xi)
    const Small shift{step_.work, rank}, k{step_.k, rank};
    crew_.each(q, rank, [&](std::int64_t i, std::int64_t j) {
        shift(i, j) = seen(i, j) - step_.z[i * batch_ + step_.pivot[j]];
    });
    solve_gram(other(), q, rank, shift, k);
    copy_rows(q, rank, step_.k, rank, step_.image_shift, rules_.padded(rank));
    if (rules_.coupled) solve_gram(other(), q, rank, seen, Small{step_.gram_solved, rank});
}

// Inner products of the new directions and their images with the other side, as they are stored:
// made with rounded coefficients. Nobody asks for them before the next pass.
template <class T, class Crew>
NFD_FAST_HD_OUTLINE void LayerAlgebra<T, Crew>::measure_images() {
    const std::int64_t p = step_.p, q = step_.q, rank = step_.rank, row = rules_.padded(rank);
    if (!rules_.reused || q == 0) return;
    // Other images.u = (s - cross c) T^-1 for the stored u.
    const Small rest{step_.k, rank}, along{step_.work, rank}, scaled{step_.work + p * rank, rank};
    crew_.each(q, rank, [&](std::int64_t i, std::int64_t j) {
        rest(i, j) = step_.s[i * batch_ + step_.pivot[j]];
    });
    copy_rows(p, rank, step_.from_basis, row, along.data, rank);  // -c
    copy_rows(rank, rank, step_.inverse, row, scaled.data, rank);
    crew_.multiply(Transpose::no, q, rank, p, 1.0, of_layer(memory_.cross[side()]), along, true,
                   rest);
    crew_.multiply(Transpose::no, q, rank, rank, 1.0, rest, scaled, false,
                   Small{step_.new_cross, rank});
    // Q.v = Q.xi + (Q.Q) k for the stored v.
    const Small r = of_layer(memory_.factor[other()]);
    const Small rounded{step_.work, rank}, half{step_.seen, rank};  // which has served
    const Small to{step_.other_cross, rank};
    copy_rows(q, rank, step_.image_shift, row, rounded.data, rank);
    crew_.multiply(Transpose::no, q, rank, q, 1.0, r, rounded, false, half);
    crew_.multiply(Transpose::yes, q, rank, q, 1.0, r, half, false, to);
    crew_.each(q, rank, [&](std::int64_t i, std::int64_t j) {
        to(i, j) += step_.z[i * batch_ + step_.pivot[j]];
    });
}

// Coefficients of X from those of Z: c <- A + c M, T <- T M.
template <class T, class Crew>
NFD_FAST_HD_OUTLINE void LayerAlgebra<T, Crew>::compose() {
    const std::int64_t p = step_.p, rank = step_.rank;
    const Small m{step_.m, batch_}, work{step_.work, batch_};
    crew_.multiply(Transpose::no, rank, batch_, batch_, 1.0, Small{step_.t, batch_}, m, false,
                   work);
    copy(step_.work, rank * batch_, step_.t);
    crew_.multiply(Transpose::no, p, batch_, batch_, 1.0, Small{step_.c, batch_}, m, false, work);
    crew_.each(p * batch_, [&](std::int64_t i) { step_.c[i] = step_.a[i] + step_.work[i]; });
}

// W X = V (Gamma c) + xi T + Q (k T + D U.X), with beta, in T.
template <class T, class Crew>
NFD_FAST_HD_OUTLINE void LayerAlgebra<T, Crew>::round_coefficients() {
    const double beta = applied_factor();
    const std::int64_t rank = step_.rank, p = step_.p, q = step_.q;
    const std::int64_t row = rules_.padded(batch_);
    const Small work{step_.work, batch_}, t{step_.t, batch_};
    const Small c{step_.c, batch_}, b{step_.b, batch_};
    const Small gamma = of_layer(memory_.gamma[side()]);
    crew_.multiply(Transpose::no, p, batch_, p, beta, gamma, c, false, work);
    copy_rows(p, batch_, step_.work, batch_, step_.images, row);
    fill(step_.noise, batch_ * row, T(0));
    crew_.each(rank, batch_, [&](std::int64_t i, std::int64_t j) {
        step_.noise[step_.pivot[i] * row + j] = static_cast<T>(beta * t(i, j));
    });
    crew_.alone(
        [&] { step_.uses_other = q > 0 && (rules_.learns || (rules_.reused && rank > 0)); });
    if (q == 0) return;
    if (rules_.reused) {
        crew_.multiply(Transpose::no, q, batch_, rank, beta, Small{step_.k, rank}, t, false, work);
    } else {
        fill(step_.work, q * batch_, 0.0);
    }
    crew_.multiply(forward() ? Transpose::no : Transpose::yes, q, batch_, p, beta,
                   of_layer(memory_.learned), b, true, work);
    copy_rows(q, batch_, step_.work, batch_, step_.other, row);
    if (!rules_.coupled) return;
    crew_.multiply(Transpose::no, q, batch_, p, rules_.branch_factor,
                   of_layer(memory_.along_other[side()]), c, false, work);
    crew_.multiply(Transpose::no, q, batch_, rank, rules_.branch_factor,
                   Small{step_.gram_solved, rank}, t, true, work);
    copy_rows(q, batch_, step_.work, batch_, step_.coupling, row);
}

// Mean over neurons and batch of the square of Q times the coupling's coefficients.
template <class T, class Crew>
NFD_FAST_HD_OUTLINE double LayerAlgebra<T, Crew>::coupling(std::int64_t layer) {
    turn_to(layer);
    const std::int64_t q = step_.q;
    copy_rows(q, batch_, step_.coupling, rules_.padded(batch_), step_.work, batch_);  // have served
    crew_.multiply(Transpose::no, q, batch_, q, 1.0, of_layer(memory_.factor[other()]),
                   Small{step_.work, batch_}, false, Small{step_.k, batch_});
    const double sum =
        crew_.sum(q * batch_, [&](std::int64_t i) { return step_.k[i] * step_.k[i]; });
    return sum / static_cast<double>(batch_);
}

template <class T, class Crew>
NFD_FAST_HD_OUTLINE void LayerAlgebra<T, Crew>::append(std::int64_t layer, double* measured) {
    turn_to(layer);
    const std::int64_t p = step_.p, q = step_.q, rank = step_.rank;
    const Small lean{measured, rank};            // (p, rank) U.u
    const Small own{measured + p * rank, rank};  // (rank, rank) u.u
    const Small r = of_layer(memory_.factor[side()]);
    const Small gamma = of_layer(memory_.gamma[side()]);
    measure_images();
    // R of the enlarged basis: R12 = R^-T U.u, R22^T R22 = u.u - R12^T R12.
    crew_.solve(Transpose::yes, p, rank, r, lean);
    crew_.multiply(Transpose::yes, rank, rank, p, -1.0, lean, lean, true, own);
    cholesky(crew_, rank, own);
    crew_.each(p, rank, [&](std::int64_t i, std::int64_t j) { r(i, p + j) = lean(i, j); });
    crew_.each(rank, p + rank, [&](std::int64_t i, std::int64_t j) {
        r(p + i, j) = gamma(p + i, j) = j < p ? 0.0 : own(i, j - p);
    });
    // u = U g + (new directions) R22 with g = R^-1 R12.
    crew_.solve(Transpose::no, p, rank, r, lean);
    if (memory_.inverse[side()]) extend_inverse(lean, own);
    const Small gamma_new{gamma.data + p, gamma.stride};
    crew_.multiply(Transpose::no, p, rank, p, 1.0, gamma, lean, false, gamma_new);
    if (rules_.coupled) {
        const Small along = of_layer(memory_.along_other[side()]);
        const Small along_new{along.data + p, along.stride};
        crew_.each(memory_.capacity, rank,
                   [&](std::int64_t i, std::int64_t j) { along_new(i, j) = 0; });
        crew_.multiply(Transpose::no, q, rank, p, 1.0, along, lean, false, along_new);
        crew_.multiply(Transpose::no, q, rank, rank, 1.0, Small{step_.gram_solved, rank}, own, true,
                       along_new);
    }
    if (rules_.reused) {
        const Small cross = of_layer(memory_.cross[side()]);
        const Small back = of_layer(memory_.cross[other()]);
        crew_.each(q, rank, [&](std::int64_t i, std::int64_t j) {
            cross(i, p + j) = step_.new_cross[i * rank + j];
            back(p + j, i) = step_.other_cross[i * rank + j];
        });
    }
    crew_.alone([&] { memory_.ranks[side()][layer_ - 1] = p + rank; });

    // Coefficients of X in the stored basis: [c - g R22^-1 T; R22^-1 T].
    const Small alpha = coefficients(side());
    const Small fresh{alpha.data + p * batch_, batch_};
    copy(step_.t, rank * batch_, fresh.data);
    crew_.solve(Transpose::no, rank, batch_, own, fresh);
    copy(step_.c, p * batch_, alpha.data);
    crew_.multiply(Transpose::no, p, batch_, rank, -1.0, lean, fresh, true, alpha);
}

// (U.U)^-1 of the enlarged basis: with g = (U.U)^-1 U.u and S = (R22^T R22)^-1
//     [(U.U)^-1 + g S g^T, -g S; -S g^T, S].
template <class T, class Crew>
NFD_FAST_HD_OUTLINE void LayerAlgebra<T, Crew>::extend_inverse(Small g, Small own) {
    const std::int64_t p = step_.p, rank = step_.rank;
    const Small inverse = of_layer(memory_.inverse[side()]);
    const Small root{step_.e, rank};  // R22^-1
    crew_.each(rank, rank,
               [&](std::int64_t i, std::int64_t j) { root(i, j) = i == j ? 1.0 : 0.0; });
    crew_.solve(Transpose::no, rank, rank, own, root);
    crew_.each(rank, rank, [&](std::int64_t i, std::int64_t j) {
        double sum = 0;
        for (std::int64_t k = 0; k < rank; ++k) sum += root(i, k) * root(j, k);
        inverse(p + i, p + j) = sum;
    });
    crew_.each(p, rank, [&](std::int64_t i, std::int64_t j) {
        double sum = 0;
        for (std::int64_t k = 0; k < rank; ++k) sum -= g(i, k) * inverse(p + k, p + j);
        inverse(i, p + j) = inverse(p + j, i) = sum;
    });
    crew_.each(p, p, [&](std::int64_t i, std::int64_t j) {
        double sum = inverse(i, j);
        for (std::int64_t k = 0; k < rank; ++k) sum -= inverse(i, p + k) * g(j, k);
        inverse(i, j) = sum;
    });
}

template <class T, class Crew>
NFD_FAST_HD_OUTLINE void LayerAlgebra<T, Crew>::learn(const double* sample_weights, double step) {
    if (step == 0) return;
    const Small of_adjoints = coefficients(kAdjoints), of_features = coefficients(kFeatures);
    const std::int64_t rows = memory_.ranks[kAdjoints][layer_ - 1];
    const std::int64_t columns = memory_.ranks[kFeatures][layer_ - 1];
    crew_.each(rows, batch_, [&](std::int64_t i, std::int64_t b) {
        of_adjoints(i, b) *= step * sample_weights[b];
    });
    const Small transposed{step_.k, columns};  // which has served
    crew_.each(batch_, columns,
               [&](std::int64_t b, std::int64_t j) { transposed(b, j) = of_features(j, b); });
    crew_.multiply(Transpose::no, rows, columns, batch_, -1.0, of_adjoints, transposed, true,
                   of_layer(memory_.learned));
}

}  // namespace NFD_FAST_TARGET
}  // namespace nfd_fast
