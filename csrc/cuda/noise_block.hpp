// Four random words of one counter, and the four normals that they make.
#pragma once

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

// The same the other way; the others are zero.
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

}  // namespace nfd_fast::cuda
