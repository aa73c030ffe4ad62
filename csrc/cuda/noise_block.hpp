// Four random words of one counter, and the four normals that they make.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cuda/device.hpp"
#include "nfd_fast/normal.hpp"
#include "nfd_fast/philox.hpp"

namespace nfd_fast::cuda {

// What one Philox block gives, stored 16 bytes at a time.
template <class T>
struct alignas(16) Four {
    T value[4];
};

// Whether a Four may be stored there in one piece.
template <class T>
__device__ inline bool aligned(const T* at) {
    return reinterpret_cast<std::uintptr_t>(at) % alignof(Four<T>) == 0;
}

// Stores the first `count`, at most four.
template <class T>
__device__ inline void store(const Four<T>& four, T* to, std::int64_t count) {
    if (count >= 4 && aligned(to)) {
        *reinterpret_cast<Four<T>*>(to) = four;
        return;
    }
    NFD_FAST_UNROLL
    for (int i = 0; i < 4; ++i) {
        if (i < count) to[i] = four.value[i];
    }
}

// The first `count`, at most four; the others are zero.
template <class T>
__device__ inline Four<T> load(const T* from, std::int64_t count) {
    if (count >= 4 && aligned(from)) return *reinterpret_cast<const Four<T>*>(from);
    Four<T> four{};
    NFD_FAST_UNROLL
    for (int i = 0; i < 4; ++i) {
        if (i < count) four.value[i] = from[i];
    }
    return four;
}

__device__ inline Four<std::uint32_t> four_words(NoiseAddress address, std::uint32_t c0,
                                                 std::uint32_t c2) {
    PhiloxCounter<std::uint32_t> block[1] = {{c0, address.c1, c2, 0}};
    philox4x32(block, address.key0, address.key1);
    return {{block[0].c0, block[0].c1, block[0].c2, block[0].c3}};
}

template <class T>
__device__ inline Four<T> made_of(const Four<std::uint32_t>& words) {
    if constexpr (std::is_same_v<T, std::uint32_t>) {
        return words;
    } else {
        const auto first = nfd_fast::box_muller<T>(words.value[0], words.value[1]);
        const auto second = nfd_fast::box_muller<T>(words.value[2], words.value[3]);
        return {{first.first, first.second, second.first, second.second}};
    }
}

// What memory is written in: half of one costs more than all of it.
constexpr std::size_t kSectorBytes = 32;

// Makes and stores what is made of the words of a warp's lanes, which lie one beside the other;
// `to` is this lane's, and all lanes call it. A lane would write its sector in two pieces of 16
// bytes, so the two of a pair exchange words and fill first the even one's together, then the odd
// one's.
template <class T>
__device__ inline void store_sectors(const Four<std::uint32_t>& words, T* to) {
    static_assert(sizeof(Four<T>) == kSectorBytes, "two pieces");
    struct alignas(16) Half {
        T value[2];
    };
    const bool odd = threadIdx.x % 2 == 1;
    std::uint32_t low[2], high[2];
    NFD_FAST_UNROLL
    for (int i = 0; i < 2; ++i) {
        const std::uint32_t first = words.value[i], second = words.value[2 + i];
        const std::uint32_t received = __shfl_xor_sync(0xffffffffu, odd ? first : second, 1);
        low[i] = odd ? received : first;
        high[i] = odd ? second : received;
    }
    auto* const halves = reinterpret_cast<Half*>(odd ? to - 2 : to);
    const auto even_one = nfd_fast::box_muller<T>(low[0], low[1]);
    halves[0] = {{even_one.first, even_one.second}};
    const auto odd_one = nfd_fast::box_muller<T>(high[0], high[1]);
    halves[2] = {{odd_one.first, odd_one.second}};
}

}  // namespace nfd_fast::cuda
