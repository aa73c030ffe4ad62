// Products of a stored matrix with the few columns of a batch: each pass over the matrix does all
// that is wanted of it, since reading it is what costs. Included by kernels.cpp alone.
//
// A batch is packed: columns side by side in runs of one register, [i / kPack][b][i % kPack], the
// last run filled up with zeros. Separate columns of a width that is a power of two would fall on
// the same cache lines, and each other out of the cache.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/kernels.hpp"
#include "cpu/lanes.hpp"

namespace nfd_fast {
inline namespace NFD_FAST_TARGET {
namespace {

// Rows of the matrix and columns of the batch taken together: as many as the registers hold.
constexpr int kForwardRows = kLanes == 8 ? 4 : 3;
constexpr int kBackwardRows = kLanes == 8 ? 4 : 2;
constexpr int kThinColumns = 4;
// Beyond this many columns the products are bound by arithmetic, which those of block_products.hpp
// do better, or a BLAS library. Measured at widths 256 ... 4096.
constexpr std::int64_t kMostThinHere = kLanes >= 4 ? kMostThin : 4;
// Packs of a row that stay in the cache while the columns of a larger batch pass over them.
constexpr std::int64_t kThinChunk = 64;

template <class T>
using WholePack = Pack<T, kPack<T>>;

template <class T>
WholePack<T> load_some(const T* from, std::int64_t count) {
    WholePack<T> pack{};
    std::memcpy(&pack, from, static_cast<std::size_t>(count) * sizeof(T));
    return pack;
}

template <class T>
void pack_column(const T* column, std::int64_t count, std::int64_t batch, T* packed) {
    for (std::int64_t i = 0; i < count; i += kPack<T>) {
        const bool whole = i + kPack<T> <= count;
        store_pack(whole ? load_pack<WholePack<T>>(column + i) : load_some(column + i, count - i),
                   packed + i * batch);
    }
}

template <class T>
void unpack_column(const T* packed, std::int64_t batch, std::int64_t count, T* column) {
    for (std::int64_t i = 0; i < count; i += kPack<T>) {
        const std::int64_t now = i + kPack<T> <= count ? kPack<T> : count - i;
        std::memcpy(column + i, packed + i * batch, static_cast<std::size_t>(now) * sizeof(T));
    }
}

// Calls f with the number of columns as a constant, for each run of at most kThinColumns of them.
template <class F>
void for_column_runs(std::int64_t batch, F f) {
    for (std::int64_t b = 0; b < batch; b += kThinColumns) {
        with_constant<kThinColumns>(batch - b < kThinColumns ? batch - b : kThinColumns,
                                    [&](auto columns) { f(b, columns); });
    }
}

template <int rows, int columns, class T>
NFD_FAST_INLINE void add_products(const WholePack<T> (&row)[rows], const T* packed,
                                  WholePack<T> (&sum)[rows][columns]) {
    NFD_FAST_UNROLL
    for (int c = 0; c < columns; ++c) {
        const auto column = load_pack<WholePack<T>>(packed + c * kPack<T>);
        NFD_FAST_UNROLL
        for (int r = 0; r < rows; ++r) sum[r][c] = multiply_add(row[r], column, sum[r][c]);
    }
}

// thin_forward for `rows` rows; `sums` is scratch.
template <int rows, class T>
void multiply_rows(const T* matrix, std::int64_t stride, const T* packed, std::int64_t batch,
                   std::int64_t count, WholePack<T>* sums, T scale, const T* skip, T* out,
                   std::int64_t stride_out) {
    using P = WholePack<T>;
    constexpr std::int64_t chunk = kThinChunk * kPack<T>;
    for (std::int64_t start = 0; start < count; start += chunk) {
        const std::int64_t end = start + chunk < count ? start + chunk : count;
        for_column_runs(batch, [&](std::int64_t b, auto constant) {
            constexpr int columns = decltype(constant)::value;
            // The next rows, asked for by the first run alone: what follows in these the processor
            // sees by itself, but for one page at a time (four columns, one processor: 28 GB/s, not
            // 20).
            const std::int64_t ahead = b == 0 ? rows * stride : 0;
            P sum[rows][columns];
            NFD_FAST_UNROLL
            for (int r = 0; r < rows; ++r) {
                NFD_FAST_UNROLL
                for (int c = 0; c < columns; ++c) {
                    sum[r][c] = start == 0 ? P{} : sums[r * batch + b + c];
                }
            }
            const std::int64_t whole = start + (end - start) / kPack<T> * kPack<T>;
            const T* column = packed + b * kPack<T>;
            for (std::int64_t i = start; i < whole; i += kPack<T>) {
                P row[rows];
                NFD_FAST_UNROLL
                for (int r = 0; r < rows; ++r) {
                    row[r] = load_pack<P>(matrix + r * stride + i);
                    prefetch(matrix + r * stride + i + ahead);
                }
                add_products<rows, columns>(row, column + i * batch, sum);
            }
            if (whole < end) {
                P row[rows];
                for (int r = 0; r < rows; ++r) {
                    row[r] = load_some(matrix + r * stride + whole, end - whole);
                }
                add_products<rows, columns>(row, column + whole * batch, sum);
            }
            for (int r = 0; r < rows; ++r) {
                for (int c = 0; c < columns; ++c) {
                    if (end < count) {
                        sums[r * batch + b + c] = sum[r][c];
                    } else {
                        const std::int64_t at = (b + c) * stride_out + r;
                        const T product = scale * sum_of_pack<T>(sum[r][c]);
                        out[at] = skip ? skip[at] + product : product;
                    }
                }
            }
        });
    }
}

template <class T>
void thin_forward(const T* matrix, std::int64_t stride, std::int64_t rows, std::int64_t count,
                  const T* packed, std::int64_t batch, T scale, const T* skip, T* out,
                  std::int64_t stride_out) {
    WholePack<T> sums[kForwardRows * kMostThin];
    const auto group = [&](std::int64_t r, auto group_rows) {
        multiply_rows<decltype(group_rows)::value>(matrix + r * stride, stride, packed, batch,
                                                   count, sums, scale, skip ? skip + r : nullptr,
                                                   out + r, stride_out);
    };
    std::int64_t r = 0;
    for (; r + kForwardRows <= rows; r += kForwardRows) {
        group(r, std::integral_constant<int, kForwardRows>{});
    }
    for (; r < rows; ++r) group(r, std::integral_constant<int, 1>{});
}

enum class Pass { product, update, both };

// One run of columns of the batch over `rows` rows of the matrix, see thin_backward.
template <Pass pass, int rows, int columns, class T>
void transposed_rows(T* matrix, std::int64_t stride, std::int64_t count, const T* factors,
                     std::int64_t factors_stride, std::int64_t batch, const T* weighted,
                     T* product) {
    using P = WholePack<T>;
    P factor[rows][columns];
    for (int r = 0; r < rows; ++r) {
        for (int c = 0; c < columns; ++c) {
            factor[r][c] = broadcast_pack<P>(factors[c * factors_stride + r]);
        }
    }
    const auto step = [&](std::int64_t i, P(&row)[rows]) {
        if constexpr (pass != Pass::update) {
            for (int c = 0; c < columns; ++c) {
                T* at = product + i * batch + c * kPack<T>;
                P sum = load_pack<P>(at);
                for (int r = 0; r < rows; ++r) sum = multiply_add(factor[r][c], row[r], sum);
                store_pack(sum, at);
            }
        }
        if constexpr (pass != Pass::product) {
            for (int c = 0; c < columns; ++c) {
                const P column = load_pack<P>(weighted + i * batch + c * kPack<T>);
                for (int r = 0; r < rows; ++r) {
                    row[r] = multiply_add(factor[r][c], column, row[r]);
                }
            }
        }
    };
    std::int64_t i = 0;
    for (; i + kPack<T> <= count; i += kPack<T>) {
        P row[rows];
        for (int r = 0; r < rows; ++r) {
            row[r] = load_pack<P>(matrix + r * stride + i);
            // The next rows: the processor does not look beyond a page.
            prefetch(matrix + (r + rows) * stride + i);
        }
        step(i, row);
        if constexpr (pass != Pass::product) {
            for (int r = 0; r < rows; ++r) store_pack(row[r], matrix + r * stride + i);
        }
    }
    if (i == count) return;
    P row[rows];
    for (int r = 0; r < rows; ++r) row[r] = load_some(matrix + r * stride + i, count - i);
    step(i, row);
    if constexpr (pass != Pass::product) {
        for (int r = 0; r < rows; ++r) {
            std::memcpy(matrix + r * stride + i, &row[r],
                        static_cast<std::size_t>(count - i) * sizeof(T));
        }
    }
}

template <class T>
void thin_backward(T* matrix, std::int64_t stride, std::int64_t rows, std::int64_t count,
                   const T* factors, std::int64_t factors_stride, std::int64_t batch,
                   const T* weighted, T* product) {
    const auto group = [&](std::int64_t r, auto group_rows) {
        constexpr int size = decltype(group_rows)::value;
        const auto run = [&](auto pass, std::int64_t b, auto columns) {
            transposed_rows<decltype(pass)::value, size, decltype(columns)::value>(
                matrix + r * stride, stride, count, factors + b * factors_stride + r,
                factors_stride, batch, weighted ? weighted + b * kPack<T> : nullptr,
                product ? product + b * kPack<T> : nullptr);
        };
        using Product = std::integral_constant<Pass, Pass::product>;
        using Update = std::integral_constant<Pass, Pass::update>;
        using Both = std::integral_constant<Pass, Pass::both>;
        if (product && weighted && batch <= kThinColumns) {
            return for_column_runs(batch,
                                   [&](std::int64_t b, auto columns) { run(Both{}, b, columns); });
        }
        // No column of a larger batch may see what another has changed: twice over rows that are
        // then in the cache.
        if (product) {
            for_column_runs(batch,
                            [&](std::int64_t b, auto columns) { run(Product{}, b, columns); });
        }
        if (weighted) {
            for_column_runs(batch,
                            [&](std::int64_t b, auto columns) { run(Update{}, b, columns); });
        }
    };
    std::int64_t r = 0;
    for (; r + kBackwardRows <= rows; r += kBackwardRows) {
        group(r, std::integral_constant<int, kBackwardRows>{});
    }
    for (; r < rows; ++r) group(r, std::integral_constant<int, 1>{});
}

}  // namespace
}  // namespace NFD_FAST_TARGET
}  // namespace nfd_fast
