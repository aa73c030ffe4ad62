// The part of a layer's algebra that all blocks of a replica wait for, in few steps.
//
// layer_algebra.hpp goes from one small product to the next, some fifty in a chain, and on a device
// each costs a wait of many threads. Here are the same numbers from as few steps as depend on each
// other. With the inverse Grams I = (U.U)^-1 and J = (Q.Q)^-1, the images W U = V Gamma and
// W^T Q = S Omega, the cross products C = S.U, and the letters of layer_algebra.hpp:
//     1. c = I b           d = D b              w = J z
//     2. E = X.X - b^T c   r = s - C c          beta Gamma c
//     3. T from E          g = Omega^T r
//     4.                   y = J g
//     5. k = y R - w P     k T + D b = y N - w H + d
// for matrices in which a new direction has the row of its column in the block, and the other rows
// are zero: P (B, rank) picks the pivots, R = P T^-1, H = P T and N = P T^-1 T, the coefficients of
// the block's columns in those at the pivots. What layer_algebra.hpp asks about the new directions,
// (s - C c) T^-1, is asked here about the block as it is, and T^-1 comes last: so the products go
// on while one warp finds T. Nothing is lost by it: r is the same difference as there, and at the
// pivots N is the identity.
//
// T is found row by row: of the E that is left, the row at a pivot j, over its root, is a row of T,
// and is taken off. The coefficients N come along:
//     N_m,i -= N_m,j E_j,i / E_j,j          N_j,i = E_j,i / E_j,j          for m < j < i
// and of T^-1 the column of the new pivot is -N_m,j over the root, and 1 over it. What is left of E
// and N change by the same rule, all at once, so that there is one wait per column. N_m,j also says
// how long a column's parts are, and with that how well is known what is left of it.
//
// Each step is a list of products that don't depend on each other. Lists are made while the block
// still waits for the sums; then a warp looks up its share and has little else to do.
//
// A nearly dependent block is taken apart so in each of its rounds; the answer to what needed more
// than one is left to layer_algebra.hpp.
#pragma once

#include <climits>
#include <cmath>
#include <cstdint>

#include "cuda/crew.hpp"
#include "nfd_fast/layer_algebra.hpp"

namespace nfd_fast::cuda {

// 1/sqrt(x) of a positive number.
__device__ inline double inverse_root(double x) {
#if defined(NFD_FAST_EMULATES_CUDA)
    return 1 / ::sqrt(x);
#else
    return ::rsqrt(x);
#endif
}

// to = factor (add + sign A B) with A(i, k) = a[i down + k along]; add and B have the rows of a
// block. No `inner` makes it a copy.
struct Product {
    const double *a, *b, *add;
    void* to;
    double factor, sign;
    int rows, inner, down, along, stride;
    int start;     // its first share of the step
    bool applied;  // whether it is in the type of the neurons
    bool fresh;    // whether it has a column for each new direction, and rows as short
};

template <class T>
class LeaderAlgebra : public LayerAlgebra<T, Crew> {
    using Base = LayerAlgebra<T, Crew>;

  public:
    using Base::Base;

    // Says where the inner products of a layer's block will be, when its matrices are there; `near`
    // if these and all of the step are in shared memory. Then come, in place of those of the base:
    __device__ NFD_FAST_OUTLINE void prepare(std::int64_t layer, Products of_block, bool near) {
        crew_.alone([&] {
            layer_ = layer;
            near_ = near;
            step_.p = memory_.ranks[side()][layer - 1];
            step_.q = memory_.ranks[other()][layer - 1];
            step_.refined = false;
            // Most layers are like the one before, and the lists take longer than the products.
            const Planned now{step_.p, step_.q, Base::of_layer(memory_.inverse[side()]).data,
                              of_block.b, step_.xx};
            if (!(now == planned_)) plan(of_block);
            planned_ = now;
        });
    }
    __device__ bool take_apart() { return project(); }
    __device__ NFD_FAST_OUTLINE bool take_rest_apart(Products of_rest) {
        crew_.alone([&] {
            step_.refined = true;
            planned_ = {};
            plan(of_rest);
        });
        return project();
    }
    __device__ void answer() {
        if (step_.refined) return Base::answer();
        if (threadIdx.x == 0) {
            step_.uses_other = step_.q > 0 && (rules_.learns || (rules_.reused && step_.rank > 0));
        }
        run(kImages, warp(), crew_.warps());
        crew_.sync();
        run(kAnswer, warp(), crew_.warps());
        crew_.sync();
    }

  private:
    using Base::batch_, Base::crew_, Base::layer_, Base::memory_, Base::other, Base::rules_,
        Base::side, Base::step_;

    // Whose products are made at a time.
    enum StepOf { kCoefficients, kResidual, kBack, kImages, kAnswer, kSteps };
    static constexpr int kMostOfStep = 8, kMost = 20;

    // A share of a product, a warp's at a time: rows with four lanes each, and columns.
    static constexpr int kColumns = 4, kRows = kWarp / kColumns;

    __device__ static int warp() { return static_cast<int>(threadIdx.x / kWarp); }
    __device__ static int row() { return static_cast<int>(threadIdx.x % kWarp / kColumns); }
    __device__ static int column() { return static_cast<int>(threadIdx.x % kColumns); }
    __device__ int batch() const { return static_cast<int>(batch_); }

    // Where the header comment's numbers are, in arrays that are free meanwhile.
    __device__ double* d() const { return step_.seen; }                 // (q, B)
    __device__ double* r() const { return step_.k; }                    // (q, B)
    __device__ double* g() const { return step_.gram_solved; }          // (q, B)
    __device__ double* of_images() const { return step_.other_cross; }  // (q, B) W U c along Q
    __device__ double* lengths() const { return step_.work; }           // (B) of the columns
    __device__ double* least() const { return step_.work + batch(); }   // (B) squares of directions
    __device__ double* n_and_minus_h() const { return step_.work + 2 * batch(); }  // (2 B, B)
    __device__ double* r_and_minus_p() const { return n_and_minus_h() + 2 * batch() * batch(); }
    __device__ double* y_and_w() const { return r_and_minus_p() + 2 * batch() * batch(); }

    // --- Lists of products ---

    // What they depend on: ranks, and where the matrices, the sums and the step are.
    struct Planned {
        std::int64_t p = -1, q = -1;
        const double *matrix = nullptr, *sums = nullptr, *step = nullptr;

        __device__ bool operator==(const Planned& o) const {
            return p == o.p && q == o.q && matrix == o.matrix && sums == o.sums && step == o.step;
        }
    };

    __device__ NFD_FAST_OUTLINE void plan(Products z);
    __device__ Product product(std::int64_t rows, std::int64_t inner, Small a, const double* b,
                               void* to) const {
        return {a.data,
                b,
                nullptr,
                to,
                1.0,
                1.0,
                static_cast<int>(rows),
                static_cast<int>(inner),
                static_cast<int>(a.stride),
                1,
                batch(),
                0,
                false,
                false};
    }
    __device__ static Product transposed(Product p) {
        p.along = p.down;
        p.down = 1;
        return p;
    }
    __device__ static Product plus(const double* add, double sign, Product p) {
        p.add = add;
        p.sign = sign;
        return p;
    }
    __device__ Product applied(double factor, Product p) const {
        p.factor = factor;
        p.applied = true;
        p.stride = static_cast<int>(rules_.padded(batch_));
        return p;
    }
    __device__ static Product fresh(Product p) {
        p.fresh = true;
        return p;
    }
    __device__ Product copy(const double* from, std::int64_t rows, void* to) const {
        return plus(from, 1.0, product(rows, 0, Small{nullptr, 1}, from, to));
    }
    __device__ void begin(StepOf step) {
        now_ = step;
        first_[step] = step == 0 ? 0 : first_[step - 1] + count_;
        count_ = ends_[step] = 0;
        for (int m = 0; m < kMostOfStep; ++m) starts_[step][m] = INT_MAX;
    }
    __device__ void add(const Product& p) {
        Product& to = products_[first_[now_] + count_];
        to = p;
        to.start = starts_[now_][count_] = ends_[now_];
        ++count_;
        const int blocks = (batch() + kColumns - 1) / kColumns;
        ends_[now_] += (p.rows + kRows - 1) / kRows * blocks;
    }

    // The place of a pointer, for the compiler to see that it is in shared memory: half of the
    // instructions are about addresses otherwise.
    template <bool Near, class Element>
    __device__ static Element* place(Element* pointer) {
        if constexpr (!Near) return pointer;
        auto* const shared = shared_memory<unsigned char>();
        const auto at = reinterpret_cast<std::uintptr_t>(pointer);
        const auto from = reinterpret_cast<std::uintptr_t>(shared);
        return reinterpret_cast<Element*>(shared + static_cast<int>(at - from));
    }
    template <bool Near>
    __device__ NFD_FAST_OUTLINE void run(StepOf step, int first, int apart) const;
    __device__ void run(StepOf step, int first, int apart) const {
        if (near_) {
            run<true>(step, first, apart);
        } else {
            run<false>(step, first, apart);
        }
    }
    __device__ NFD_FAST_OUTLINE bool project();
    template <bool Near>
    __device__ NFD_FAST_OUTLINE void factorize();

    Planned planned_;
    Product products_[kMost];
    // Of each step: its first product, the first share of each of its products, and how many
    // shares there are.
    alignas(16) int starts_[kSteps][kMostOfStep];
    int first_[kSteps], ends_[kSteps];
    StepOf now_;
    int count_;
    int rank_, short_row_;  // of the new directions, and its filled up
    const double* zz_;
    bool near_, settled_;
};

// By one thread.
template <class T>
__device__ NFD_FAST_OUTLINE void LeaderAlgebra<T>::plan(Products z) {
    const std::int64_t p = step_.p, q = step_.q;
    const bool first = !step_.refined, reused = first && rules_.reused;
    const bool coupled = first && rules_.coupled;
    const double beta = Base::applied_factor();
    const auto matrix = [&](double* array) { return Base::of_layer(array); };
    const Small learned = matrix(memory_.learned), own{step_.c, batch_};
    const Small both{y_and_w(), 2 * batch_};
    double *const n = n_and_minus_h(), *const root = r_and_minus_p();
    double *const minus_h = n + batch_ * batch_, *const minus_p = root + batch_ * batch_;
    zz_ = z.zz;

    begin(kCoefficients);
    add(product(p, p, matrix(memory_.inverse[side()]), z.b, step_.c));
    add(copy(z.s, q, step_.s));
    if (first) {
        const Product of_learned = product(q, p, learned, z.b, d());
        add(Base::forward() ? of_learned : transposed(of_learned));
        add(copy(z.b, p, step_.b));
        add(copy(z.z, q, step_.z));
        add(copy(z.zz, batch_, step_.xx));
    }
    if (reused) {
        Product w = product(q, q, matrix(memory_.inverse[other()]), z.z, both.data + batch_);
        w.stride = 2 * batch();
        add(w);
    }

    begin(kResidual);
    const Small block{z.b, batch_};
    add(plus(z.zz, -1.0, transposed(product(batch_, p, block, step_.c, step_.e))));
    if (reused) add(plus(z.s, -1.0, product(q, p, matrix(memory_.cross[side()]), step_.c, r())));
    if (first) {
        add(applied(beta, product(p, p, matrix(memory_.gamma[side()]), step_.c, step_.images)));
    }
    if (coupled) add(product(q, p, matrix(memory_.along_other[side()]), step_.c, of_images()));

    begin(kBack);
    if (reused) add(transposed(product(q, q, matrix(memory_.gamma[other()]), r(), g())));

    begin(kImages);
    if (reused) {
        Product y = product(q, q, matrix(memory_.inverse[other()]), g(), both.data);
        y.stride = 2 * batch();
        add(y);
    }
    add(fresh(applied(1.0, product(p, batch_, own, minus_p, step_.from_basis))));
    add(applied(-beta, copy(minus_h, batch_, step_.noise)));

    begin(kAnswer);
    const std::int64_t known = reused ? 2 * batch_ : 0;
    add(applied(beta, plus(d(), 1.0, product(q, known, both, n, step_.other))));
    if (reused) add(fresh(applied(1.0, product(q, known, both, root, step_.image_shift))));
    if (coupled) {
        add(applied(rules_.branch_factor,
                    plus(of_images(), 1.0, product(q, batch_, both, n, step_.coupling))));
        add(fresh(product(q, batch_, both, root, step_.gram_solved)));
    }
}

// This warp's shares of a step, `apart`, by all its lanes. Lanes of a row have every fourth term
// each, of four columns, and in the end a column.
template <class T>
template <bool Near>
__device__ NFD_FAST_OUTLINE void LeaderAlgebra<T>::run(StepOf step, int first, int apart) const {
    static_assert(kColumns == 4, "a lane adds up four columns");
    const auto& self = *place<Near>(this);
    const int batch = self.batch(), mine = column(), end = self.ends_[step];
#pragma unroll 1
    for (int share = first; share < end; share += apart) {
        int which = self.first_[step] - 1;
#pragma unroll
        for (int m = 0; m < kMostOfStep; ++m) which += self.starts_[step][m] <= share ? 1 : 0;
        const Product& p = self.products_[which];
        const int rows = p.rows, groups = (rows + kRows - 1) / kRows;
        int group = share - p.start, j = 0;
        for (; group >= groups; group -= groups) j += kColumns;
        // What is beyond an end is worked out from what is before it, and dropped.
        const int i = group * kRows + row(), last = batch - 1 - j;
        const int second = last < 1 ? last : 1, third = last < 2 ? last : 2;
        const int fourth = last < 3 ? last : 3;
        const bool there = i < rows && mine <= last;
        const double before = p.add && there ? place<Near>(p.add)[i * batch + j + mine] : 0.0;
        const int inner = p.inner, along = kColumns * p.along;
        const double* left = place<Near>(p.a) + (i < rows ? i : rows - 1) * p.down + mine * p.along;
        const double* right = place<Near>(p.b) + mine * batch + j;
        double sum[kColumns] = {0, 0, 0, 0};
#pragma unroll 4
        for (int k = mine; k < inner; k += kColumns) {
            const double value = *left;
            sum[0] = ::fma(value, right[0], sum[0]);
            sum[1] = ::fma(value, right[second], sum[1]);
            sum[2] = ::fma(value, right[third], sum[2]);
            sum[3] = ::fma(value, right[fourth], sum[3]);
            left += along;
            right += kColumns * batch;
        }
        const double total = sums_over_warp<kColumns, kColumns / 2>(sum);
        const int rank = p.fresh ? self.rank_ : batch;
        if (!there || j + mine >= rank) continue;
        const double value = p.factor * ::fma(p.sign, total, before);
        const int filled = p.applied ? self.short_row_ : rank;
        const int at = i * (p.fresh ? filled : p.stride) + j + mine;
        if (p.applied) {
            place<Near>(static_cast<T*>(p.to))[at] = static_cast<T>(value);
        } else {
            place<Near>(static_cast<double*>(p.to))[at] = value;
        }
    }
}

template <class T>
__device__ NFD_FAST_OUTLINE bool LeaderAlgebra<T>::project() {
    const int warps = crew_.warps(), me = warp();
    run(kCoefficients, me, warps);
    for (int i = static_cast<int>(threadIdx.x); i < batch(); i += warps * kWarp) {
        const double square = zz_[i * batch() + i];
        lengths()[i] = ::sqrt(square);
        least()[i] = Base::least(step_.refined ? Base::smallest_share(i) : square);
    }
    crew_.sync();
    run(kResidual, me, warps);
    crew_.sync();
    const int helpers = warps > 1 ? warps - 1 : 1;
    if (me == 0 && near_) factorize<true>();
    if (me == 0 && !near_) factorize<false>();
    if (me >= warps - helpers) run(kBack, me - (warps - helpers), helpers);
    crew_.sync();
    return settled_;
}

// T with T^-1, N, H, R and P, by one warp.
template <class T>
template <bool Near>
__device__ NFD_FAST_OUTLINE void LeaderAlgebra<T>::factorize() {
    const int count = batch(), most = static_cast<int>(Base::most_new(step_.p));
    const double clearly = Base::clearly();
    double *const e = place<Near>(step_.e), *const t = place<Near>(step_.t);
    double *const n = place<Near>(n_and_minus_h()), *const minus_h = n + count * count;
    double *const root = place<Near>(r_and_minus_p()), *const minus_p = root + count * count;
    const double* const zz = place<Near>(zz_);
    const double *const length = place<Near>(lengths()), *const smallest = place<Near>(least());
    std::int64_t* const pivot = place<Near>(step_.pivot);
    bool* const is_open = place<Near>(step_.open);
    const bool speaks = threadIdx.x % kWarp == 0;
    bool settled = true;
    int rank = 0;
#pragma unroll 1
    for (int j = 0; j < count; ++j) {
        // What is left of the square, and the square of the numbers it is what is left of.
        const double left = e[j * count + j], whole = zz[j * count + j];
        const double over_root = inverse_root(left), least = smallest[j];
        double size = length[j];
#pragma unroll 4
        for (int m = 0; m < j; ++m) size = ::fma(::fabs(n[m * count + j]), length[m], size);
        const double known = size * size;
        // Written so that NaN counts as dependent.
        const bool open = whole > least && rank < most && left + Base::kKnown * known > least;
        const bool fresh = open && left > (Base::kNew * known > least ? Base::kNew * known : least);
        settled = settled && (!open || (fresh && left > clearly * known));
        if (speaks) {
            is_open[j] = open;
            if (fresh) pivot[rank] = j;
        }
#pragma unroll 1
        for (int m = row(); m < count; m += kRows) {
            if (!fresh && m != j) continue;
#pragma unroll 1
            for (int i = column(); i < count; i += kColumns) {
                const double upper = fresh && i >= j ? e[j * count + i] * over_root : 0.0;
                const double part = fresh && i > j ? upper * over_root : 0.0;
                if (m == j) {
                    if (fresh) t[rank * count + i] = upper;
                    minus_h[j * count + i] = -upper;
                    n[j * count + i] = part;
                } else if (i > j && (m < j || i >= m)) {
                    double* const entry = (m < j ? n : e) + m * count + i;
                    *entry = ::fma(m < j ? -n[m * count + j] : -e[j * count + m], part, *entry);
                }
                if (fresh && i == j) {
                    const double in_n = m < j ? -n[m * count + j] : m == j ? 1.0 : 0.0;
                    root[m * count + rank] = in_n * over_root;
                    minus_p[m * count + rank] = m == j ? -1.0 : 0.0;
                }
            }
        }
        rank += fresh ? 1 : 0;
        __syncwarp();
    }
    // rules_.padded(rank), without a division
    const int padding = static_cast<int>(rules_.padding);
    int stride = 0;
    while (stride < rank) stride += padding;
    T* const inverse = place<Near>(step_.inverse);
#pragma unroll 1
    for (int m = row(); m < count; m += kRows) {
#pragma unroll 1
        for (int l = column(); l < rank; l += kColumns) {
            const int at = static_cast<int>(pivot[l]);
            n[m * count + at] = m == at ? 1.0 : 0.0;
            if (m >= rank) continue;
            inverse[m * stride + l] = static_cast<T>(root[static_cast<int>(pivot[m]) * count + l]);
        }
    }
    if (speaks) {
        step_.rank = rank_ = rank;
        short_row_ = stride;
        settled_ = settled;
    }
}

}  // namespace nfd_fast::cuda
