// The steps of conditional_algebra.hpp, in the order in which a layer goes through them.

#include "cpu/conditional_algebra.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/blas.hpp"

namespace nfd_fast {
namespace {

// How much of its square a column of a block must keep to be a new direction, as shares of the
// square of the numbers that what is kept is the rest of. Sums in float64 over p terms know it to
// some p eps = 1e-14 of that: kKnown, generously. A direction is there if it is known to 1e-4 of
// itself: kNew. It is stored if the rounding of the column is still small against it: off by
// eps/sqrt(kClearlyNew) = 32 eps of the dtype, at most. (A length of 3 %: columns of different
// samples keep more, those of one sample whose weights have moved by a small step less.)
constexpr double kKnown = 1e-12;
constexpr double kNew = 1e-8;
constexpr double kClearlyNew = 1e-3;

// From how many multiplications on BLAS, with its blocks, beats a plain loop without its calls.
constexpr std::int64_t kBlasFrom = std::int64_t{1} << 18;

using blas::Transpose;

// C = factor op(A) B (+ C if `add`), with op(A) rows x inner.
void multiply(Transpose transpose, std::int64_t rows, std::int64_t columns, std::int64_t inner,
              double factor, Small a, Small b, bool add, Small c) {
    if (rows * columns * inner >= kBlasFrom) {
        blas::multiply(transpose, Transpose::no, rows, columns, inner, factor, a.data, a.stride,
                       b.data, b.stride, add ? 1.0 : 0.0, c.data, c.stride);
    } else if (transpose == Transpose::yes) {
        multiply_small_transposed(rows, columns, inner, factor, a, b, add, c);
    } else {
        multiply_small(rows, columns, inner, factor, a, b, add, c);
    }
}

// B <- op(R)^-1 B for an upper triangular R.
void solve(Transpose transpose, std::int64_t size, std::int64_t columns, Small r, Small b) {
    if (size * size * columns >= kBlasFrom) {
        blas::solve_upper(transpose, size, columns, r.data, r.stride, b.data, b.stride);
    } else if (transpose == Transpose::yes) {
        solve_transposed(size, columns, r, b);
    } else {
        solve_upper(size, columns, r, b);
    }
}

// The coefficients c of a block along a basis with Gram R^T R: c <- (R^T R)^-1 c.
void solve_gram(std::int64_t size, std::int64_t columns, Small r, Small c) {
    solve(Transpose::yes, size, columns, r, c);
    solve(Transpose::no, size, columns, r, c);
}

}  // namespace

template <class T>
void Step<T>::lay_out(Arena& arena, std::int64_t capacity, std::int64_t batch) {
    const double columns = static_cast<double>(capacity), rows = static_cast<double>(batch);
    arena.take(open, rows);
    arena.take(pivot, rows);
    for (double** array : {&a, &b, &c, &s, &z, &seen, &k, &gram_solved, &new_cross, &other_cross}) {
        arena.take(*array, columns * rows);
    }
    for (double** array : {&xx, &e, &t, &m}) arena.take(*array, rows * rows);
    arena.take(work, (columns + rows) * rows);
    for (T** array : {&from_basis, &image_shift, &images, &other, &coupling, &off_basis}) {
        arena.take(*array, columns * rows);
    }
    for (T** array : {&inverse, &noise, &off_block}) arena.take(*array, rows * rows);
}

template <class T>
bool LayerAlgebra<T>::take_apart(std::int64_t layer, Products of_block) {
    layer_ = layer;
    step_.p = state_.ranks[side_][layer - 1];
    step_.q = state_.ranks[other()][layer - 1];
    std::copy_n(of_block.b, step_.p * batch_, step_.b);
    std::copy_n(of_block.s, step_.q * batch_, step_.s);
    std::copy_n(of_block.z, step_.q * batch_, step_.z);
    std::copy_n(of_block.zz, batch_ * batch_, step_.xx);
    step_.refined = false;
    return project(of_block);
}

template <class T>
bool LayerAlgebra<T>::take_rest_apart(Products of_rest) {
    step_.refined = true;
    std::copy_n(of_rest.s, step_.q * batch_, step_.s);
    return project(of_rest);
}

// Given the inner products of Z, the coefficients c along the basis and the new directions T among
// the columns; returns whether every column is settled.
template <class T>
bool LayerAlgebra<T>::project(Products of_z) {
    const std::int64_t p = step_.p;
    const Small r = of_layer(state_.factor[side_]);
    const Small c{step_.c, batch_}, e{step_.e, batch_};
    std::copy_n(of_z.b, p * batch_, step_.c);
    solve(Transpose::yes, p, batch_, r, c);  // R^-T U.Z
    std::copy_n(of_z.zz, batch_ * batch_, step_.e);
    multiply(Transpose::yes, batch_, batch_, p, -1.0, c, c, true, e);
    solve(Transpose::no, p, batch_, r, c);

    const Small t{step_.t, batch_};
    const std::int64_t most =
        std::min(batch_, (keep_ ? state_.capacity : problem_.stack.width) - p);
    const double share = problem_.tolerance * problem_.tolerance;
    // What is not stored need not be well conditioned.
    const double clearly = keep_ ? kClearlyNew : kNew;
    // Squared: far from where the inverse of a direction's length overflows in T, and from where a
    // square loses digits in float64.
    const double shortest = 16.0 * static_cast<double>(std::numeric_limits<T>::min());
    const double tiny = std::max(shortest * shortest, 1e-290);
    bool settled = true;
    step_.rank = 0;
    for (std::int64_t j = 0; j < batch_; ++j) {
        step_.open[j] = false;
        const double whole = of_z.zz[j * batch_ + j];
        const double least = std::max(share * smallest_share(j), tiny);
        // Written so that NaN counts as dependent: it is found and reported elsewhere.
        if (!(whole > least) || step_.rank == most) continue;
        step_.open[j] = true;
        // What is left of the square, and the square of the numbers it is what is left of: lengths
        // of the column and of its parts along the earlier ones.
        double left = e(j, j), size = std::sqrt(whole);
        for (std::int64_t i = step_.rank; i-- > 0;) {
            left -= t(i, j) * t(i, j);
            double part = t(i, j);
            for (std::int64_t l = i + 1; l < step_.rank; ++l) {
                part -= t(i, step_.pivot[l]) * step_.work[l];
            }
            step_.work[i] = part / t(i, step_.pivot[i]);
            const std::int64_t at = step_.pivot[i];
            size += std::abs(step_.work[i]) * std::sqrt(of_z.zz[at * batch_ + at]);
        }
        const double known = size * size;
        if (left + kKnown * known <= least) {
            step_.open[j] = false;
            continue;
        }
        if (!(left > std::max(kNew * known, least))) {
            settled = false;
            continue;
        }
        settled = settled && left > clearly * known;
        append_row(step_.rank, j, batch_, std::sqrt(left), e, t);
        step_.pivot[step_.rank++] = j;
    }
    return settled;
}

// The square of a column of Z below which, times a share, nothing depends on it: it may stand for
// more of another column of X than of its own, by the square of its factor in M.
template <class T>
double LayerAlgebra<T>::smallest_share(std::int64_t j) const {
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
template <class T>
void LayerAlgebra<T>::separate() {
    const std::int64_t p = step_.p;
    const Small t{step_.t, batch_}, m{step_.m, batch_};
    if (!step_.refined) {
        std::fill_n(step_.a, p * batch_, 0.0);
        set_identity(batch_, m);
    }
    // Z = Z' N + U F, with the rounded coefficients: X = U (A + F M) + Z' (N M).
    const Small f{step_.c, batch_}, unit{step_.work, batch_};
    set_identity(batch_, unit);
    std::fill_n(step_.off_block, batch_ * batch_, T(0));
    for (std::int64_t j = 0; j < batch_; ++j) {
        for (std::int64_t i = 0; i < p; ++i) {
            const T rounded = step_.open[j] ? static_cast<T>(f(i, j)) : T(0);
            step_.off_basis[i * batch_ + j] = -rounded;
            f(i, j) = static_cast<double>(rounded);
        }
        if (!step_.open[j]) continue;
        for (std::int64_t i = 0; i < step_.rank && step_.pivot[i] < j; ++i) {
            const T rounded = static_cast<T>(t(i, j) / t(i, step_.pivot[i]));
            step_.off_block[j * batch_ + step_.pivot[i]] = -rounded;
            unit(step_.pivot[i], j) = static_cast<double>(rounded);
        }
    }
    multiply(Transpose::no, p, batch_, batch_, 1.0, f, m, true, Small{step_.a, batch_});
    const Small next{step_.e, batch_};  // which has served
    multiply(Transpose::no, batch_, batch_, batch_, 1.0, unit, m, false, next);
    std::copy_n(step_.e, batch_ * batch_, step_.m);
}

template <class T>
void LayerAlgebra<T>::answer() {
    directions();
    new_images();
    if (step_.refined) compose();
    round_coefficients();
}

// The new directions u = (Z - U c) T^-1, as the sweep makes them.
template <class T>
void LayerAlgebra<T>::directions() {
    const std::int64_t rank = step_.rank;
    const Small t{step_.t, batch_};
    const Small inverse{step_.e, batch_};  // which has served: T^-1 at the pivots
    set_identity(rank, inverse);
    for (std::int64_t i = rank - 1; i >= 0; --i) {
        for (std::int64_t m = i + 1; m < rank; ++m) {
            for (std::int64_t j = 0; j < rank; ++j) {
                inverse(i, j) -= t(i, step_.pivot[m]) * inverse(m, j);
            }
        }
        for (std::int64_t j = 0; j < rank; ++j) inverse(i, j) /= t(i, step_.pivot[i]);
    }
    for (std::int64_t i = 0; i < rank; ++i) {
        for (std::int64_t j = 0; j < rank; ++j) {
            step_.inverse[i * rank + j] = static_cast<T>(inverse(i, j));
        }
        for (std::int64_t j = 0; j < step_.p; ++j) {
            step_.from_basis[j * rank + i] = static_cast<T>(-step_.c[j * batch_ + step_.pivot[i]]);
        }
    }
}

// What is known of the images of the new directions.
template <class T>
void LayerAlgebra<T>::new_images() {
    const std::int64_t p = step_.p, q = step_.q, rank = step_.rank;
    if (!reused() || q == 0) return;
    // Other images.u = (s - cross c) T^-1, exactly and for the rounded u.
    const Small cross = of_layer(state_.cross[side_]);
    const Small rest{step_.k, rank};
    const Small along{step_.work, rank}, scaled{step_.work + p * rank, rank};
    const auto products = [&](double sign, Small inverse, double* to) {
        for (std::int64_t i = 0; i < q; ++i) {
            for (std::int64_t j = 0; j < rank; ++j) {
                rest(i, j) = step_.s[i * batch_ + step_.pivot[j]];
            }
        }
        multiply(Transpose::no, q, rank, p, sign, cross, along, true, rest);
        multiply(Transpose::no, q, rank, rank, 1.0, rest, inverse, false, Small{to, rank});
    };
    for (std::int64_t m = 0; m < p; ++m) {
        for (std::int64_t j = 0; j < rank; ++j) {
            along(m, j) = step_.c[m * batch_ + step_.pivot[j]];
        }
    }
    const Small inverse{step_.e, batch_};        // of directions()
    products(-1.0, inverse, step_.other_cross);  // until it is turned into t below
    std::copy_n(step_.from_basis, p * rank, along.data);
    std::copy_n(step_.inverse, rank * rank, scaled.data);
    products(1.0, scaled, step_.new_cross);
    // t = Q.(W u) = Gamma^T (other images.u), for W^T Q = S Gamma.
    const Small seen{step_.seen, rank};
    multiply(Transpose::yes, q, rank, q, 1.0, of_layer(state_.gamma[other()]),
             Small{step_.other_cross, rank}, false, seen);
    // k = (Q.Q)^-1 (t - Q.xi)
    const Small r = of_layer(state_.factor[other()]);
    const Small shift = rest;
    for (std::int64_t i = 0; i < q; ++i) {
        for (std::int64_t j = 0; j < rank; ++j) {
            shift(i, j) = seen(i, j) - step_.z[i * batch_ + step_.pivot[j]];
        }
    }
    solve_gram(q, rank, r, shift);
    for (std::int64_t i = 0; i < q * rank; ++i) {
        step_.image_shift[i] = static_cast<T>(step_.k[i]);
    }
    // Q.v = Q.xi + (Q.Q) k for the image as it is stored.
    const Small rounded{step_.work, rank}, half{step_.gram_solved, rank};
    std::copy_n(step_.image_shift, q * rank, rounded.data);
    multiply(Transpose::no, q, rank, q, 1.0, r, rounded, false, half);
    multiply(Transpose::yes, q, rank, q, 1.0, r, half, false, Small{step_.other_cross, rank});
    for (std::int64_t i = 0; i < q; ++i) {
        for (std::int64_t j = 0; j < rank; ++j) {
            step_.other_cross[i * rank + j] += step_.z[i * batch_ + step_.pivot[j]];
        }
    }
    if (!coupled()) return;
    std::copy_n(step_.seen, q * rank, step_.gram_solved);
    solve_gram(q, rank, r, Small{step_.gram_solved, rank});
}

// Coefficients of X from those of Z: c <- A + c M, T <- T M.
template <class T>
void LayerAlgebra<T>::compose() {
    const std::int64_t p = step_.p, rank = step_.rank;
    const Small m{step_.m, batch_}, work{step_.work, batch_};
    multiply(Transpose::no, rank, batch_, batch_, 1.0, Small{step_.t, batch_}, m, false, work);
    std::copy_n(step_.work, rank * batch_, step_.t);
    multiply(Transpose::no, p, batch_, batch_, 1.0, Small{step_.c, batch_}, m, false, work);
    for (std::int64_t i = 0; i < p * batch_; ++i) step_.c[i] = step_.a[i] + step_.work[i];
}

// W X = V (Gamma c) + xi T + Q (k T + D U.X), with beta, in T.
template <class T>
void LayerAlgebra<T>::round_coefficients() {
    // A forward pass adds its increment to the features itself; a backward pass multiplies by phi'
    // first and takes beta along there.
    const double beta = forward() ? problem_.stack.branch_factor : 1.0;
    const std::int64_t rank = step_.rank, p = step_.p, q = step_.q;
    const Small work{step_.work, batch_}, t{step_.t, batch_};
    const Small c{step_.c, batch_}, b{step_.b, batch_};
    const Small gamma = of_layer(state_.gamma[side_]);
    multiply(Transpose::no, p, batch_, p, beta, gamma, c, false, work);
    for (std::int64_t i = 0; i < p * batch_; ++i) {
        step_.images[i] = static_cast<T>(step_.work[i]);
    }
    std::fill_n(step_.noise, batch_ * batch_, T(0));
    for (std::int64_t i = 0; i < rank; ++i) {
        for (std::int64_t j = 0; j < batch_; ++j) {
            step_.noise[step_.pivot[i] * batch_ + j] = static_cast<T>(beta * t(i, j));
        }
    }
    step_.uses_other = q > 0 && (problem_.train_hidden || (reused() && rank > 0));
    if (q == 0) return;
    if (reused()) {
        multiply(Transpose::no, q, batch_, rank, beta, Small{step_.k, rank}, t, false, work);
    } else {
        std::fill_n(step_.work, q * batch_, 0.0);
    }
    const Small learned = of_layer(state_.learned);
    if (forward()) {
        multiply(Transpose::no, q, batch_, p, beta, learned, b, true, work);
    } else {
        multiply(Transpose::yes, q, batch_, p, beta, learned, b, true, work);
    }
    for (std::int64_t i = 0; i < q * batch_; ++i) {
        step_.other[i] = static_cast<T>(step_.work[i]);
    }
    if (!coupled()) return;
    multiply(Transpose::no, q, batch_, p, problem_.stack.branch_factor,
             of_layer(state_.along_other[side_]), c, false, work);
    multiply(Transpose::no, q, batch_, rank, problem_.stack.branch_factor,
             Small{step_.gram_solved, rank}, t, true, work);
    for (std::int64_t i = 0; i < q * batch_; ++i) {
        step_.coupling[i] = static_cast<T>(step_.work[i]);
    }
}

// Mean over neurons and batch of the square of Q times the coupling's coefficients.
template <class T>
double LayerAlgebra<T>::coupling() const {
    const std::int64_t q = step_.q;
    std::copy_n(step_.coupling, q * batch_, step_.work);  // both have served
    multiply(Transpose::no, q, batch_, q, 1.0, of_layer(state_.factor[other()]),
             Small{step_.work, batch_}, false, Small{step_.k, batch_});
    double sum = 0;
    for (std::int64_t i = 0; i < q * batch_; ++i) sum += step_.k[i] * step_.k[i];
    return sum / static_cast<double>(batch_);
}

template <class T>
void LayerAlgebra<T>::append(double* measured) {
    const std::int64_t p = step_.p, q = step_.q, rank = step_.rank;
    const Small lean{measured, rank};            // (p, rank) U.u
    const Small own{measured + p * rank, rank};  // (rank, rank) u.u
    const Small r = of_layer(state_.factor[side_]);
    const Small gamma = of_layer(state_.gamma[side_]);
    // R of the enlarged basis: R12 = R^-T U.u, R22^T R22 = u.u - R12^T R12.
    solve(Transpose::yes, p, rank, r, lean);
    multiply(Transpose::yes, rank, rank, p, -1.0, lean, lean, true, own);
    cholesky(rank, own, own);
    for (std::int64_t j = 0; j < rank; ++j) {
        for (std::int64_t i = 0; i < p; ++i) r(i, p + j) = lean(i, j);
        for (std::int64_t i = 0; i < rank; ++i) {
            r(p + i, p + j) = own(i, j);
            gamma(p + i, p + j) = own(i, j);
            for (std::int64_t m = 0; m < p; ++m) r(p + i, m) = gamma(p + i, m) = 0;
        }
    }
    // u = U g + (new directions) R22 with g = R^-1 R12.
    solve(Transpose::no, p, rank, r, lean);
    const Small gamma_new{gamma.data + p, gamma.stride};
    multiply(Transpose::no, p, rank, p, 1.0, gamma, lean, false, gamma_new);
    if (coupled()) {
        const Small along = of_layer(state_.along_other[side_]);
        const Small along_new{along.data + p, along.stride};
        const std::int64_t rows = state_.capacity;
        for (std::int64_t i = 0; i < rows; ++i) {
            for (std::int64_t j = 0; j < rank; ++j) along_new(i, j) = 0;
        }
        multiply(Transpose::no, q, rank, p, 1.0, along, lean, false, along_new);
        multiply(Transpose::no, q, rank, rank, 1.0, Small{step_.gram_solved, rank}, own, true,
                 along_new);
    }
    if (reused()) {
        const Small cross = of_layer(state_.cross[side_]);
        const Small back = of_layer(state_.cross[other()]);
        for (std::int64_t i = 0; i < q; ++i) {
            for (std::int64_t j = 0; j < rank; ++j) {
                cross(i, p + j) = step_.new_cross[i * rank + j];
                back(p + j, i) = step_.other_cross[i * rank + j];
            }
        }
    }
    state_.ranks[side_][layer_ - 1] = p + rank;

    // Coefficients of X in the stored basis: [c - g R22^-1 T; R22^-1 T].
    const Small alpha = coefficients(side_);
    const Small fresh{&alpha(p, 0), batch_};
    for (std::int64_t i = 0; i < rank; ++i) {
        for (std::int64_t j = 0; j < batch_; ++j) fresh(i, j) = step_.t[i * batch_ + j];
    }
    solve(Transpose::no, rank, batch_, own, fresh);
    std::copy_n(step_.c, p * batch_, alpha.data);
    multiply(Transpose::no, p, batch_, rank, -1.0, lean, fresh, true, alpha);
}

// D -= step sum_b w_b gamma_b alpha_b^T, for the coefficients of the batch's adjoints and features.
template <class T>
void LayerAlgebra<T>::learn(Gradient gradient) {
    if (gradient.step == 0) return;
    const Small learned = of_layer(state_.learned);
    const Small of_adjoints = coefficients(kAdjoints), of_features = coefficients(kFeatures);
    const std::int64_t rows = state_.ranks[kAdjoints][layer_ - 1];
    const std::int64_t columns = state_.ranks[kFeatures][layer_ - 1];
    for (std::int64_t i = 0; i < rows; ++i) {
        for (std::int64_t b = 0; b < batch_; ++b) {
            of_adjoints(i, b) *= gradient.step * gradient.sample_weights[b];
        }
    }
    const Small transposed{step_.k, columns};  // which has served
    for (std::int64_t j = 0; j < columns; ++j) {
        for (std::int64_t b = 0; b < batch_; ++b) transposed(b, j) = of_features(j, b);
    }
    multiply(Transpose::no, rows, columns, batch_, -1.0, of_adjoints, transposed, true, learned);
}

template struct Step<float>;
template struct Step<double>;
template class LayerAlgebra<float>;
template class LayerAlgebra<double>;

}  // namespace nfd_fast
