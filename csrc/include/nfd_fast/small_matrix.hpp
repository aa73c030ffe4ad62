// Small dense algebra in float64, row-major with a stride: what the conditional engine does once
// per layer, on matrices as large as the rank of what has been asked of one.
#pragma once

#include <cmath>
#include <cstdint>

#include "nfd_fast/config.hpp"

namespace nfd_fast {
inline namespace NFD_FAST_TARGET {

template <class Element>
struct SmallMatrix {
    Element* data;
    std::int64_t stride;

    NFD_FAST_HD Element& operator()(std::int64_t row, std::int64_t column) const {
        return data[row * stride + column];
    }
};

using Small = SmallMatrix<double>;

// C = factor A B (+ C if `add`); A is rows x inner.
NFD_FAST_HD inline void multiply_small(std::int64_t rows, std::int64_t columns, std::int64_t inner,
                                       double factor, Small a, Small b, bool add, Small c) {
    for (std::int64_t i = 0; i < rows; ++i) {
        if (!add) {
            for (std::int64_t j = 0; j < columns; ++j) c(i, j) = 0;
        }
        for (std::int64_t k = 0; k < inner; ++k) {
            const double scaled = factor * a(i, k);
            for (std::int64_t j = 0; j < columns; ++j) c(i, j) += scaled * b(k, j);
        }
    }
}

// The same with the transpose of A, which is inner x rows.
NFD_FAST_HD inline void multiply_small_transposed(std::int64_t rows, std::int64_t columns,
                                                  std::int64_t inner, double factor, Small a,
                                                  Small b, bool add, Small c) {
    if (!add) {
        for (std::int64_t i = 0; i < rows; ++i) {
            for (std::int64_t j = 0; j < columns; ++j) c(i, j) = 0;
        }
    }
    for (std::int64_t k = 0; k < inner; ++k) {
        for (std::int64_t i = 0; i < rows; ++i) {
            const double scaled = factor * a(k, i);
            for (std::int64_t j = 0; j < columns; ++j) c(i, j) += scaled * b(k, j);
        }
    }
}

// B <- R^-T B for an upper triangular R.
NFD_FAST_HD inline void solve_transposed(std::int64_t size, std::int64_t columns, Small r,
                                         Small b) {
    for (std::int64_t i = 0; i < size; ++i) {
        for (std::int64_t k = 0; k < i; ++k) {
            for (std::int64_t j = 0; j < columns; ++j) b(i, j) -= r(k, i) * b(k, j);
        }
        for (std::int64_t j = 0; j < columns; ++j) b(i, j) /= r(i, i);
    }
}

// B <- R^-1 B for an upper triangular R.
NFD_FAST_HD inline void solve_upper(std::int64_t size, std::int64_t columns, Small r, Small b) {
    for (std::int64_t i = size - 1; i >= 0; --i) {
        for (std::int64_t k = i + 1; k < size; ++k) {
            for (std::int64_t j = 0; j < columns; ++j) b(i, j) -= r(i, k) * b(k, j);
        }
        for (std::int64_t j = 0; j < columns; ++j) b(i, j) /= r(i, i);
    }
}

// Upper triangular R with R^T R = E, for a positive definite E; R may be E itself.
NFD_FAST_HD inline void cholesky(std::int64_t size, Small e, Small r) {
    for (std::int64_t i = 0; i < size; ++i) {
        for (std::int64_t j = i; j < size; ++j) {
            double sum = e(i, j);
            for (std::int64_t k = 0; k < i; ++k) sum -= r(k, i) * r(k, j);
            r(i, j) = i == j ? ::sqrt(sum) : sum / r(i, i);
        }
        for (std::int64_t j = 0; j < i; ++j) r(i, j) = 0;
    }
}

enum class Novelty { none, unclear, clear };

// The columns of X, taken in order, in terms of those that are new directions: given their Gram
// matrix E after projecting out what is known, finds the pivots and the rank x columns factor T in
// echelon form with E = T^T T up to what is dropped. `judge(j, left)` says whether column j, given
// what is left of its square, is a new direction; no more than `most` are. The first unclear column
// ends it: returns how many columns are settled, and T holds the directions among them.
template <class Judge>
NFD_FAST_HD std::int64_t reveal_rank(std::int64_t columns, std::int64_t most, Small e, Judge judge,
                                     std::int64_t* pivot, Small t, std::int64_t& rank) {
    rank = 0;
    for (std::int64_t j = 0; j < columns && rank < most; ++j) {
        double left = e(j, j);
        for (std::int64_t k = 0; k < rank; ++k) left -= t(k, j) * t(k, j);
        const Novelty novelty = judge(j, left);
        if (novelty == Novelty::unclear) return j;
        if (novelty == Novelty::none) continue;
        const double diagonal = ::sqrt(left);
        for (std::int64_t i = 0; i < columns; ++i) {
            double sum = i < j ? 0.0 : e(j, i);
            for (std::int64_t k = 0; k < rank && i > j; ++k) sum -= t(k, j) * t(k, i);
            t(rank, i) = i < j ? 0.0 : i == j ? diagonal : sum / diagonal;
        }
        pivot[rank++] = j;
    }
    return columns;
}

}  // namespace NFD_FAST_TARGET
}  // namespace nfd_fast
