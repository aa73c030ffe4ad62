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
#if defined(__CUDA_ARCH__)
        // In half of the instructions; a matrix is small.
        return data[static_cast<int>(row) * static_cast<int>(stride) + static_cast<int>(column)];
#else
        return data[row * stride + column];
#endif
    }
};

using Small = SmallMatrix<double>;

enum class Transpose : bool { no, yes };

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

// E <- the upper triangular R with R^T R = E, for a positive definite E, by a crew
// (layer_algebra.hpp).
template <class Crew>
NFD_FAST_HD void cholesky(const Crew& crew, std::int64_t size, Small e) {
    for (std::int64_t i = 0; i < size; ++i) {
        if (crew.stopped()) return;
        crew.each(size, [&](std::int64_t j) {
            double entry = j < i ? 0 : e(i, j);
            for (std::int64_t k = 0; k < i && j >= i; ++k) entry -= e(k, i) * e(k, j);
            e(i, j) = entry;
        });
        const double diagonal = ::sqrt(e(i, i));
        crew.sync();  // before it changes
        crew.each(size - i, [&](std::int64_t j) {
            e(i, i + j) = j == 0 ? diagonal : e(i, i + j) / diagonal;
        });
    }
}

}  // namespace NFD_FAST_TARGET
}  // namespace nfd_fast
