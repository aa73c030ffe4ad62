// Small products of matrices, tile by tile.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/items.hpp"
#include "nfd_fast/elementary.hpp"

namespace nfd_fast::cuda {

// Four neighbours that move together.
template <class T>
struct alignas(16) Quad {
    T of[4];
};

constexpr int kSide = 16;      // threads along each side of a tile
constexpr int kTileRows = 64;  // four per thread
constexpr int kTileInner = 16;
constexpr int kTilePad = 4;

template <class T>
constexpr std::size_t tile_bytes(int columns) {
    return sizeof(T) * kTileInner * static_cast<std::size_t>(kTileRows + columns + 2 * kTilePad);
}

// One block's tile of a product: store(row, column, sum_k left(k, row) right(k, column)) for 64
// rows and 16 kEach columns. Neighbouring threads load along the inner index where
// `kAlongInner`, else along rows and columns.
template <int kEach, bool kAlongInner, class T, class Left, class Right, class Store>
__device__ void tile_product(std::int64_t inner, T* shared, Left left, Right right, Store store) {
    constexpr int kColumns = kSide * kEach;
    constexpr int kLeftStride = kTileRows + kTilePad, kRightStride = kColumns + kTilePad;
    T* lefts = shared;
    T* rights = shared + kTileInner * kLeftStride;
    const int thread = static_cast<int>(threadIdx.x);
    const int tx = thread % kSide, ty = thread / kSide;
    const auto load = [&](auto from, int count, T* to, int stride, std::int64_t first) {
        for (int at = thread; at < kTileInner * count; at += kThreads) {
            const int k = kAlongInner ? at % kTileInner : at / count;
            const int other = kAlongInner ? at / kTileInner : at % count;
            to[k * stride + other] = first + k < inner ? from(first + k, other) : T(0);
        }
    };
    T sums[4][kEach] = {};
    for (std::int64_t first = 0; first < inner; first += kTileInner) {
        load(left, kTileRows, lefts, kLeftStride, first);
        load(right, kColumns, rights, kRightStride, first);
        __syncthreads();
        for (int k = 0; k < kTileInner; ++k) {
            const auto rows = *reinterpret_cast<const Quad<T>*>(lefts + k * kLeftStride + 4 * tx);
            T columns[kEach];
            NFD_FAST_UNROLL
            for (int j = 0; j < kEach; ++j) columns[j] = rights[k * kRightStride + ty + kSide * j];
            NFD_FAST_UNROLL
            for (int i = 0; i < 4; ++i) {
                NFD_FAST_UNROLL
                for (int j = 0; j < kEach; ++j) {
                    sums[i][j] = fused_multiply_add(rows.of[i], columns[j], sums[i][j]);
                }
            }
        }
        __syncthreads();
    }
    NFD_FAST_UNROLL
    for (int j = 0; j < kEach; ++j) {
        NFD_FAST_UNROLL
        for (int i = 0; i < 4; ++i) store(4 * tx + i, ty + kSide * j, sums[i][j]);
    }
}

}  // namespace nfd_fast::cuda
