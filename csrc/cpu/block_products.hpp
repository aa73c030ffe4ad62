// Products of a stored matrix with a batch of more than a few columns, bound by arithmetic. A BLAS
// library copies its operands into an order of its own first, which for batches far narrower than
// the matrix takes as long as the product. Here the matrix is used as it lies: one operand is taken
// number by number, the other in whole registers, so that each of the three products of training is
// the same loop with other strides. Included by kernels.cpp alone.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "cpu/kernels.hpp"
#include "cpu/lanes.hpp"

namespace nfd_fast {
inline namespace NFD_FAST_TARGET {
namespace {

// Sums held in 24 of 32 registers.
constexpr int kBlockRows = 6;
constexpr int kBlockPacks = 4;
// Columns of b that are taken together, and how many numbers of each of them, from the second level
// of the cache, while rows of a pass over them.
template <class T>
constexpr std::int64_t kPanel = kBlockPacks * kPack<T>;
constexpr std::int64_t kPanelDepth = 512;
// Up to this batch a BLAS library has not been found faster, at widths 64 ... 4096; with half the
// registers, of half the size, it always was.
constexpr std::int64_t kMostBlockedHere = kLanes == 8 ? 1024 : 0;

// c += a b for `rows` rows and `packs` packs. Not inlined: where more than this wants registers,
// compilers keep some of the sums in memory, for a third of the time.
template <int rows, int packs, class T>
NFD_FAST_NOINLINE void multiply_block(const T* a, std::int64_t a_row, std::int64_t a_step,
                                      const T* b, std::int64_t b_stride, std::int64_t inner, T* c,
                                      std::int64_t c_stride) {
    using P = Pack<T, kPack<T>>;
    P sum[rows][packs];
    NFD_FAST_UNROLL
    for (int r = 0; r < rows; ++r) {
        NFD_FAST_UNROLL
        for (int v = 0; v < packs; ++v) {
            sum[r][v] = load_pack<P>(c + r * c_stride + v * kPack<T>);
        }
    }
    do {
        P column[packs];
        NFD_FAST_UNROLL
        for (int v = 0; v < packs; ++v) column[v] = load_pack<P>(b + v * kPack<T>);
        NFD_FAST_UNROLL
        for (int r = 0; r < rows; ++r) {
            const P factor = broadcast_pack<P>(a[r * a_row]);
            NFD_FAST_UNROLL
            for (int v = 0; v < packs; ++v) {
                sum[r][v] = multiply_add(factor, column[v], sum[r][v]);
            }
        }
        a += a_step;
        b += b_stride;
    } while (--inner > 0);
    NFD_FAST_UNROLL
    for (int r = 0; r < rows; ++r) {
        NFD_FAST_UNROLL
        for (int v = 0; v < packs; ++v) store_pack(sum[r][v], c + r * c_stride + v * kPack<T>);
    }
}

std::int64_t groups_of(std::int64_t rows) { return (rows + kBlockRows - 1) / kBlockRows; }

// Memory that is wanted next, asked for by a few cache lines at a time while products go on: more
// at once would keep them waiting.
template <class T>
class Requests {
  public:
    Requests(Ahead<T> ahead, std::int64_t turns)
        : ahead_(ahead), lines_((ahead.columns + kCacheLine<T> - 1) / kCacheLine<T>) {
        each_ = (ahead.rows * lines_ + turns - 1) / turns;
    }

    void take_turn() {
        for (std::int64_t i = 0; i < each_ && row_ < ahead_.rows; ++i) {
            prefetch(ahead_.at + row_ * ahead_.stride + line_ * kCacheLine<T>);
            if (++line_ == lines_) {
                line_ = 0;
                ++row_;
            }
        }
    }

  private:
    Ahead<T> ahead_;
    std::int64_t lines_, each_, row_ = 0, line_ = 0;
};

// All rows of one panel of `packs` packs.
template <int packs, class T>
void multiply_panel(const MatrixProduct<T>& p, const T* a, const T* b, std::int64_t b_stride,
                    std::int64_t inner, T* c, std::int64_t c_stride, Requests<T>& requests) {
    // As few groups as there can be, all alike: small ones wait for memory.
    std::int64_t groups = groups_of(p.rows);
    for (std::int64_t r = 0; groups > 0; --groups) {
        with_constant<kBlockRows>((p.rows - r + groups - 1) / groups, [&](auto rows) {
            multiply_block<decltype(rows)::value, packs>(
                a + r * p.a_row, p.a_row, p.a_step, b, b_stride, inner, c + r * c_stride, c_stride);
            r += decltype(rows)::value;
        });
        requests.take_turn();
    }
}

// The last columns, fewer than a pack: copied to where whole packs may be read and written.
template <class T>
void multiply_rest(const MatrixProduct<T>& p, const T* a, const T* b, std::int64_t columns,
                   std::int64_t inner, T* c, Requests<T>& requests) {
    constexpr std::int64_t pack = kPack<T>;
    const auto copy = [columns](const T* from, T* to) {
        std::memcpy(to, from, static_cast<std::size_t>(columns) * sizeof(T));
    };
    T some[kPanelDepth * pack];
    std::memset(some, 0, static_cast<std::size_t>(inner * pack) * sizeof(T));
    for (std::int64_t k = 0; k < inner; ++k) copy(b + k * p.b_stride, some + k * pack);
    T sums[kBlockRows * pack] = {};
    for (std::int64_t r = 0; r < p.rows; r += kBlockRows) {
        MatrixProduct<T> part = p;
        part.rows = p.rows - r < kBlockRows ? p.rows - r : kBlockRows;
        for (std::int64_t i = 0; i < part.rows; ++i)
            copy(c + (r + i) * p.c_stride, sums + i * pack);
        multiply_panel<1>(part, a + r * p.a_row, some, pack, inner, sums, pack, requests);
        for (std::int64_t i = 0; i < part.rows; ++i)
            copy(sums + i * pack, c + (r + i) * p.c_stride);
    }
}

template <class T>
void multiply(const MatrixProduct<T>& p, const Ahead<T>& ahead) {
    const auto parts = [](std::int64_t count, std::int64_t of) { return (count + of - 1) / of; };
    Requests<T> requests(
        ahead, parts(p.columns, kPanel<T>) * parts(p.inner, kPanelDepth) * groups_of(p.rows));
    for (std::int64_t k = 0; k < p.inner; k += kPanelDepth) {
        const std::int64_t inner = p.inner - k < kPanelDepth ? p.inner - k : kPanelDepth;
        const T* a = p.a + k * p.a_step;
        std::int64_t j = 0;
        const auto panel = [&](auto packs) {
            multiply_panel<decltype(packs)::value>(p, a, p.b + k * p.b_stride + j, p.b_stride,
                                                   inner, p.c + j, p.c_stride, requests);
            j += decltype(packs)::value * kPack<T>;
        };
        while (j + kPack<T> <= p.columns) {
            const std::int64_t packs = (p.columns - j) / kPack<T>;
            with_constant<kBlockPacks>(packs < kBlockPacks ? packs : kBlockPacks, panel);
        }
        if (j < p.columns) {
            multiply_rest(p, a, p.b + k * p.b_stride + j, p.columns - j, inner, p.c + j, requests);
        }
    }
}

#if NFD_FAST_SHUFFLES
// The blocks of `half` numbers that lie crosswise in two rows change places.
template <int half, class P, int... lane>
NFD_FAST_INLINE void exchange_halves(P& above, P& below, std::integer_sequence<int, lane...>) {
    constexpr int count = sizeof...(lane);
    const P first =
        __builtin_shufflevector(above, below, (lane & half ? count + lane - half : lane)...);
    below = __builtin_shufflevector(above, below, (lane & half ? count + lane : lane + half)...);
    above = first;
}

template <int half, class P, int count>
NFD_FAST_INLINE void transpose_packs(P (&row)[count]) {
    NFD_FAST_UNROLL
    for (int r = 0; r < count; ++r) {
        if ((r & half) == 0) {
            exchange_halves<half>(row[r], row[r + half], std::make_integer_sequence<int, count>());
        }
    }
    if constexpr (half > 1) transpose_packs<half / 2>(row);
}

template <class T>
void transpose_square(const T* from, std::int64_t from_stride, T* to, std::int64_t to_stride) {
    using P = Pack<T, kPack<T>>;
    P row[kPack<T>];
    NFD_FAST_UNROLL
    for (int r = 0; r < kPack<T>; ++r) row[r] = load_pack<P>(from + r * from_stride);
    if constexpr (kPack<T> > 1) transpose_packs<kPack<T> / 2>(row);
    NFD_FAST_UNROLL
    for (int r = 0; r < kPack<T>; ++r) store_pack(row[r], to + r * to_stride);
}
#else
template <class T>
void transpose_square(const T* from, std::int64_t from_stride, T* to, std::int64_t to_stride) {
    for (int r = 0; r < kPack<T>; ++r) {
        for (int c = 0; c < kPack<T>; ++c) to[c * to_stride + r] = from[r * from_stride + c];
    }
}
#endif

template <class T>
void transpose(const T* from, std::int64_t from_stride, std::int64_t rows, std::int64_t columns,
               T* to, std::int64_t to_stride) {
    constexpr std::int64_t pack = kPack<T>;
    for (std::int64_t r = 0; r < rows; r += pack) {
        for (std::int64_t c = 0; c < columns; c += pack) {
            const T* source = from + r * from_stride + c;
            T* target = to + c * to_stride + r;
            if (r + pack <= rows && c + pack <= columns) {
                transpose_square(source, from_stride, target, to_stride);
                continue;
            }
            for (std::int64_t i = 0; i < pack && r + i < rows; ++i) {
                for (std::int64_t j = 0; j < pack && c + j < columns; ++j) {
                    target[j * to_stride + i] = source[i * from_stride + j];
                }
            }
        }
    }
}

}  // namespace
}  // namespace NFD_FAST_TARGET
}  // namespace nfd_fast
