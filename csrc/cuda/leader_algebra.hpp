// The part of a layer's algebra that all blocks of a replica wait for, in few steps.
//
// layer_algebra.hpp goes from one small product to the next, some fifty in a chain, and on a device
// each costs a wait of many threads. Here are the same numbers from as few steps as depend on each
// other. With the inverse Grams I = (U.U)^-1 and J = (Q.Q)^-1, the images W U = V Gamma and
// W^T Q = S Omega, the cross products C = S.U, and the letters of layer_algebra.hpp, in the order
// of their steps:
//     1. c = I b           d = D b              w = J z
//     2. E = X.X - b^T c   r = s - C c          beta Gamma c
//     3. T from E          g = Omega^T r
//     4.                   y = J g
//     5. k = y' T^-1 - w'  k T + D b = y' N - w' T + d        N = T^-1 T
// where a prime picks the columns at the pivots. What layer_algebra.hpp asks about the new
// directions, (s - C c) T^-1, is asked here about the block as it is, and T^-1 comes last: so all
// products go on while one warp finds T. Nothing is lost by it: r is the same difference as there.
//
// N (rank, B) has the coefficients of the block's columns in those at the pivots, up to the basis:
// at the pivots it is the identity, so that y' N is y itself there.
//
// T is found row by row: of the E that is left, the row at a pivot j, over its root, is a row of T,
// and is taken off. Coefficients on the pivots come along. For l before a new pivot j
//     N_l,i -= N_l,j E_j,i / E_j,j          N_new,i = E_j,i / E_j,j          for all columns i > j
// and of the inverse the column of a new pivot is -N_l,j over the root, and 1 over it: the rows of
// E that are left and those of N change by the same rule, all at once, which makes one wait per
// pivot. N_l,j also says how long a column's parts are, and thus how well is known what is left.
//
// A nearly dependent block is taken apart so in each of its rounds; what follows a second one is
// left to layer_algebra.hpp.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/crew.hpp"
#include "nfd_fast/layer_algebra.hpp"

namespace nfd_fast::cuda {

// Warps that share out the rows of matrices that don't depend on each other. Each takes eight rows
// at a time, four lanes a row; where one matrix ends the next one begins, so that none waits.
class Gang {
  public:
    static constexpr int kRows = 8, kColumns = kWarp / kRows;

    __device__ Gang(int warp, int warps) : warp_(warp), warps_(warps), turn_(warp) {}

    // The first group of rows that this warp takes, of a matrix that has so many.
    __device__ int take(int groups) {
        const int first = turn_;
        turn_ -= groups;
        while (turn_ < 0) turn_ += warps_;
        return first;
    }
    __device__ int warps() const { return warps_; }
    __device__ static int groups(int rows) { return (rows + kRows - 1) / kRows; }
    __device__ static int row() { return static_cast<int>(threadIdx.x) % kWarp / kColumns; }
    __device__ static int column() { return static_cast<int>(threadIdx.x) % kColumns; }

    // Calls f(i, j), shared out, and doesn't wait.
    template <class F>
    __device__ void each(int rows, int columns, F f) {
#pragma unroll 1
        for (int i = take(groups(rows)) * kRows + row(); i < rows; i += warps_ * kRows) {
#pragma unroll 1
            for (int j = column(); j < columns; j += kColumns) f(i, j);
        }
    }

  private:
    int warp_, warps_;
    int turn_;  // groups from where the next matrix begins to this warp
};

// Where a matrix is: A(i, k) = data[i * down + k * along].
struct Strided {
    const double* data;
    int down, along;

    __device__ static Strided of(Small a) { return {a.data, static_cast<int>(a.stride), 1}; }
    __device__ static Strided transpose_of(Small a) {
        return {a.data, 1, static_cast<int>(a.stride)};
    }
};

// 1/sqrt(x) of a positive number.
__device__ inline double inverse_root(double x) {
#if defined(NFD_FAST_EMULATES_CUDA)
    return 1 / ::sqrt(x);
#else
    return ::rsqrt(x);
#endif
}

template <class T>
class LeaderAlgebra : public LayerAlgebra<T, Crew> {
    using Base = LayerAlgebra<T, Crew>;

  public:
    using Base::Base;

    // In place of those of the base.
    __device__ bool take_apart(std::int64_t layer, Products of_block) {
        const std::int64_t p = memory_.ranks[side()][layer - 1];
        const std::int64_t q = memory_.ranks[other()][layer - 1];
        if (threadIdx.x == 0) {
            step_.p = p;
            step_.q = q;
        }
        return project(layer, of_block, p, q, true);
    }
    __device__ bool take_rest_apart(std::int64_t layer, Products of_rest) {
        return project(layer, of_rest, step_.p, step_.q, false);
    }
    __device__ NFD_FAST_OUTLINE void answer();

  private:
    using Base::crew_, Base::layer_, Base::memory_, Base::of_layer, Base::other, Base::rules_,
        Base::side, Base::step_;

    __device__ NFD_FAST_OUTLINE bool project(std::int64_t layer, Products of_z, std::int64_t p,
                                             std::int64_t q, bool first);
    __device__ NFD_FAST_OUTLINE void factorize(const double* zz);

    // To = add + factor A B, without waiting, for a B (inner, batch). Lanes that share a row have
    // every fourth product each, of four columns, and in the end a column.
    template <class To>
    __device__ NFD_FAST_OUTLINE static void multiply_rows(int group, int warps, int rows, int inner,
                                                          Strided a, const double* b, int batch,
                                                          double factor, const double* add, To* to,
                                                          int stride);
    template <class To>
    __device__ void multiply(Gang& gang, std::int64_t rows, std::int64_t inner, Strided a,
                             const double* b, double factor, const double* add, To* to,
                             std::int64_t stride) const {
        const int count = static_cast<int>(rows), columns = batch();
        const int blocks = (columns + Gang::kColumns - 1) / Gang::kColumns;
        multiply_rows(gang.take(Gang::groups(count) * blocks), gang.warps(), count,
                      static_cast<int>(inner), a, b, columns, factor, add, to,
                      static_cast<int>(stride));
    }
    // To = A B, as far apart as the block.
    __device__ void multiply(Gang& gang, std::int64_t rows, std::int64_t inner, Strided a,
                             const double* b, double* to) const {
        multiply(gang, rows, inner, a, b, 1.0, nullptr, to, batch());
    }

    __device__ Gang gang() const { return {warp(), crew_.warps()}; }
    __device__ static int warp() { return static_cast<int>(threadIdx.x) / kWarp; }
    __device__ int batch() const { return static_cast<int>(Base::batch_); }

    // Where the numbers of the header comment are, in arrays that are free meanwhile.
    __device__ double* d() const { return step_.seen; }                         // (q, B)
    __device__ double* w() const { return step_.other_cross; }                  // (q, B)
    __device__ double* r() const { return step_.k; }                            // (q, B)
    __device__ double* g() const { return step_.gram_solved; }                  // (q, B)
    __device__ double* y() const { return step_.k; }                            // (q, B), after r
    __device__ double* along_other() const { return step_.new_cross; }          // (q, B) of W U c
    __device__ double* lengths() const { return step_.work; }                   // (B) of Z
    __device__ double* inverse() const { return step_.work + batch(); }         // (B, B) T^-1
    __device__ double* parts() const { return inverse() + batch() * batch(); }  // (rank, B) N

    bool settled_ = false;
};

template <class T>
template <class To>
__device__ NFD_FAST_OUTLINE void LeaderAlgebra<T>::multiply_rows(int group, int warps, int rows,
                                                                 int inner, Strided a,
                                                                 const double* b, int batch,
                                                                 double factor, const double* add,
                                                                 To* to, int stride) {
    static_assert(Gang::kColumns == 4, "a lane adds up four columns");
    const int groups = Gang::groups(rows), mine = Gang::column();
#pragma unroll 1
    for (int j = 0;; group += warps) {
        while (group >= groups && j < batch) {
            group -= groups;
            j += Gang::kColumns;
        }
        if (j >= batch) return;
        // What is beyond an end is worked out from what is before it, and dropped.
        const int i = group * Gang::kRows + Gang::row(), last = batch - 1 - j;
        const int second = last < 1 ? last : 1, third = last < 2 ? last : 2;
        const int fourth = last < 3 ? last : 3;
        const double* left = a.data + (i < rows ? i : rows - 1) * a.down + mine * a.along;
        const double* right = b + mine * batch + j;
        double sum[Gang::kColumns] = {0, 0, 0, 0};
#pragma unroll 4
        for (int k = mine; k < inner; k += Gang::kColumns) {
            const double value = *left;
            sum[0] = ::fma(value, right[0], sum[0]);
            sum[1] = ::fma(value, right[second], sum[1]);
            sum[2] = ::fma(value, right[third], sum[2]);
            sum[3] = ::fma(value, right[fourth], sum[3]);
            left += Gang::kColumns * a.along;
            right += Gang::kColumns * batch;
        }
        const double total = sums_over_warp<Gang::kColumns, Gang::kColumns / 2>(sum);
        if (i >= rows || mine > last) continue;
        const double before = add ? add[i * batch + j + mine] : 0.0;
        to[i * stride + j + mine] = static_cast<To>(::fma(factor, total, before));
    }
}

template <class T>
__device__ NFD_FAST_OUTLINE bool LeaderAlgebra<T>::project(std::int64_t layer, Products of_z,
                                                           std::int64_t p, std::int64_t q,
                                                           bool first) {
    const int count = batch();
    const bool images = first && rules_.reused;
    const auto matrix = [&](double* array) { return memory_.square(array, layer); };
    if (threadIdx.x == 0) {
        layer_ = layer;
        step_.refined = !first;
    }
    {
        Gang all = gang();
        const Small learned = matrix(memory_.learned);
        multiply(all, p, p, Strided::of(matrix(memory_.inverse[side()])), of_z.b, step_.c);
        if (first)
            multiply(all, q, p,
                     Base::forward() ? Strided::of(learned) : Strided::transpose_of(learned),
                     of_z.b, d());
        if (images) {
            multiply(all, q, q, Strided::of(matrix(memory_.inverse[other()])), of_z.z, w());
        }
        const auto keep = [&](const double* from, std::int64_t rows, double* to) {
            all.each(static_cast<int>(rows), count,
                     [=](int i, int j) { to[i * count + j] = from[i * count + j]; });
        };
        keep(of_z.s, q, step_.s);
        if (first) {
            keep(of_z.b, p, step_.b);
            keep(of_z.z, q, step_.z);
            keep(of_z.zz, count, step_.xx);
        }
        crew_.sync();
    }
    {
        Gang all = gang();
        multiply(all, count, p, Strided{of_z.b, 1, count}, step_.c, -1.0, of_z.zz, step_.e, count);
        if (images) {
            multiply(all, q, p, Strided::of(matrix(memory_.cross[side()])), step_.c, -1.0, of_z.s,
                     r(), count);
        }
        if (first) {
            multiply(all, p, p, Strided::of(matrix(memory_.gamma[side()])), step_.c,
                     Base::applied_factor(), nullptr, step_.images, rules_.padded(count));
            if (rules_.coupled) {
                multiply(all, q, p, Strided::of(matrix(memory_.along_other[side()])), step_.c,
                         along_other());
            }
        }
        double* const to = lengths();
        all.each(count, 1, [=](int i, int) { to[i] = ::sqrt(of_z.zz[i * count + i]); });
        crew_.sync();
    }
    if (warp() == 0) factorize(of_z.zz);
    const int helpers = crew_.warps() > 1 ? crew_.warps() - 1 : 1;
    if (images && warp() >= crew_.warps() - helpers) {
        Gang rest{warp() - (crew_.warps() - helpers), helpers};
        multiply(rest, q, q, Strided::transpose_of(matrix(memory_.gamma[other()])), r(), g());
    }
    crew_.sync();
    return settled_;
}

// T, T^-1 and N, by one warp.
template <class T>
__device__ NFD_FAST_OUTLINE void LeaderAlgebra<T>::factorize(const double* zz) {
    const int count = batch();
    const int most = static_cast<int>(Base::most_new(step_.p));
    const double clearly = Base::clearly();
    double *const e = step_.e, *const t = step_.t, *const n = parts(), *const root = inverse();
    double* const length = lengths();
    const bool refined = step_.refined, speaks = threadIdx.x % kWarp == 0;
    bool settled = true;
    int rank = 0;
#pragma unroll 1
    for (int j = 0; j < count; ++j) {
        const double left = e[j * count + j], whole = zz[j * count + j];
        const double over_root = inverse_root(left);
        const double least =
            Base::least(refined ? Base::smallest_share(j) : step_.xx[j * count + j]);
        double size = length[j];
#pragma unroll 4
        for (int l = 0; l < rank; ++l) size = ::fma(::fabs(n[l * count + j]), length[l], size);
        const double known = size * size;
        // Written so that NaN counts as dependent.
        const bool open = whole > least && rank < most && left + Base::kKnown * known > least;
        const bool fresh = open && left > (Base::kNew * known > least ? Base::kNew * known : least);
        settled = settled && (!open || (fresh && left > clearly * known));
        if (speaks) step_.open[j] = open;
        if (fresh) {
#pragma unroll 1
            for (int m = Gang::row(); m < count; m += Gang::kRows) {
#pragma unroll 1
                for (int i = Gang::column(); i < count; i += Gang::kColumns) {
                    const double upper = i < j ? 0.0 : e[j * count + i] * over_root;
                    const double part = i > j ? upper * over_root : 0.0;
                    if (m == j) {
                        t[rank * count + i] = upper;
                        n[rank * count + i] = part;
                        if (i == j) root[rank * count + rank] = over_root;
                    } else if (m < rank || (m > j && i >= m)) {
                        const bool of_n = m < rank;
                        const double factor = of_n ? n[m * count + j] : e[j * count + m];
                        double* const entry = (of_n ? n : e) + m * count + i;
                        if (i > j) *entry = ::fma(-factor, part, *entry);
                        if (i == j) root[m * count + rank] = -factor * over_root;
                    }
                }
            }
            // Those of the pivots come to the front: a place is free when its column is done.
            if (speaks) step_.pivot[rank] = j;
            if (speaks && rank < j) length[rank] = length[j];
            ++rank;
        }
        __syncwarp();
    }
#pragma unroll 1
    for (int m = Gang::row(); m < rank; m += Gang::kRows) {
#pragma unroll 1
        for (int l = Gang::column(); l < rank; l += Gang::kColumns) {
            n[m * count + step_.pivot[l]] = m == l ? 1.0 : 0.0;
            if (m > l) root[m * count + l] = 0.0;
        }
    }
    if (speaks) {
        step_.rank = rank;
        settled_ = settled;
    }
}

template <class T>
__device__ NFD_FAST_OUTLINE void LeaderAlgebra<T>::answer() {
    if (step_.refined) return Base::answer();
    const int p = static_cast<int>(step_.p), q = static_cast<int>(step_.q);
    const int rank = static_cast<int>(step_.rank), count = batch();
    const int row = static_cast<int>(rules_.padded(count));
    const int short_row = static_cast<int>(rules_.padded(rank));
    const double beta = Base::applied_factor();
    const bool images = rules_.reused;
    const std::int64_t* const pivot = step_.pivot;
    const double *const t = step_.t, *const n = parts(), *const root = inverse();
    {
        Gang all = gang();
        if (images) {
            multiply(all, q, q, Strided::of(of_layer(memory_.inverse[other()])), g(), y());
        }
        T* const noise = step_.noise;
        all.each(count, count, [=](int i, int j) {
            T value = T(0);
            for (int l = 0; l < rank; ++l) {
                if (pivot[l] == i) value = static_cast<T>(beta * t[l * count + j]);
            }
            noise[i * row + j] = value;
        });
        T* const to = step_.inverse;
        all.each(rank, rank, [=](int i, int j) {
            to[i * short_row + j] = static_cast<T>(root[i * count + j]);
        });
        const double* const c = step_.c;
        T* const from_basis = step_.from_basis;
        all.each(p, rank, [=](int i, int j) {
            from_basis[i * short_row + j] = static_cast<T>(-c[i * count + pivot[j]]);
        });
        if (threadIdx.x == 0) {
            step_.uses_other = q > 0 && (rules_.learns || (rules_.reused && rank > 0));
        }
        crew_.sync();
    }
    const double *const images_of = y(), *const of_noise = w();
    // Row i of y' A.
    const auto along = [=](int i, const double* a, int j) {
        double sum = 0;
#pragma unroll 4
        for (int l = 0; l < rank; ++l) {
            sum = ::fma(images_of[i * count + pivot[l]], a[l * count + j], sum);
        }
        return sum;
    };
    Gang all = gang();
    const double* const of_learned = d();
    T* const answer = step_.other;
    all.each(q, count, [=](int i, int j) {
        double sum = of_learned[i * count + j];
        if (images) {
            sum += along(i, n, j);
#pragma unroll 4
            for (int l = 0; l < rank; ++l) {
                sum = ::fma(-of_noise[i * count + pivot[l]], t[l * count + j], sum);
            }
        }
        answer[i * row + j] = static_cast<T>(beta * sum);
    });
    if (images) {
        T* const shift = step_.image_shift;
        all.each(q, rank, [=](int i, int j) {
            shift[i * short_row + j] =
                static_cast<T>(along(i, root, j) - of_noise[i * count + pivot[j]]);
        });
    }
    if (rules_.coupled) {
        const double* const of_basis = along_other();
        const double scale = rules_.branch_factor;
        T* const coupling = step_.coupling;
        double* const solved = step_.gram_solved;
        all.each(q, count, [=](int i, int j) {
            coupling[i * row + j] =
                static_cast<T>(scale * (of_basis[i * count + j] + along(i, n, j)));
        });
        all.each(q, rank, [=](int i, int j) { solved[i * rank + j] = along(i, root, j); });
    }
    crew_.sync();
}

}  // namespace nfd_fast::cuda
