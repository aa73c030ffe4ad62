// Registers of the instruction set being compiled: 64-bit lanes for Philox, packs of numbers for
// the loops that a compiler does not keep in registers by itself.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "nfd_fast/philox.hpp"

#if defined(__GNUC__) && (defined(__SSE2__) || defined(__AVX2__) || defined(__AVX512F__))
#include <immintrin.h>
#endif

namespace nfd_fast {
inline namespace NFD_FAST_TARGET {

// Compilers widen a 32 x 32 bit product to 64-bit lanes with shuffles that cost half the speed;
// one intrinsic per instruction set is all it takes to avoid them.
#if defined(__GNUC__) && defined(__AVX512F__)
using Lanes = std::uint64_t __attribute__((vector_size(64)));
template <>
struct LaneOperations<Lanes> {
    NFD_FAST_INLINE static Lanes multiply(Lanes lanes, std::uint32_t factor) {
        return (Lanes)_mm512_mul_epu32((__m512i)lanes, _mm512_set1_epi64(factor));
    }
};
#elif defined(__GNUC__) && defined(__AVX2__)
using Lanes = std::uint64_t __attribute__((vector_size(32)));
template <>
struct LaneOperations<Lanes> {
    NFD_FAST_INLINE static Lanes multiply(Lanes lanes, std::uint32_t factor) {
        return (Lanes)_mm256_mul_epu32((__m256i)lanes, _mm256_set1_epi64x(factor));
    }
};
#elif defined(__GNUC__) && defined(__SSE2__)
using Lanes = std::uint64_t __attribute__((vector_size(16)));
template <>
struct LaneOperations<Lanes> {
    NFD_FAST_INLINE static Lanes multiply(Lanes lanes, std::uint32_t factor) {
        return (Lanes)_mm_mul_epu32((__m128i)lanes, _mm_set1_epi64x(factor));
    }
};
#else
using Lanes = std::uint64_t;
#endif

constexpr int kLanes = sizeof(Lanes) / sizeof(std::uint64_t);

// 0, 1, 2, ..., one per lane.
static inline Lanes lane_indices() {
    std::uint64_t values[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) values[lane] = static_cast<std::uint64_t>(lane);
    Lanes lanes;
    __builtin_memcpy(&lanes, values, sizeof(lanes));
    return lanes;
}

// Calls f with `count`, from 1 to `most`, as a constant.
template <int most, class F>
NFD_FAST_INLINE void with_constant(std::int64_t count, F f) {
    if constexpr (most > 1) {
        if (count < most) return with_constant<most - 1>(count, f);
    }
    f(std::integral_constant<int, most>{});
}

// `count` numbers side by side. Compilers without vector types get packs of one.
#if defined(__GNUC__)
template <class T, int count>
struct PackOf {
    typedef T type __attribute__((vector_size(sizeof(T) * count)));
};
template <class T, int count>
using Pack = typename PackOf<T, count>::type;

template <class To, class From>
NFD_FAST_INLINE To convert_pack(From from) {
#if defined(__AVX512F__)
    // GCC makes four instructions of this one; the mask of all lanes spares its false warning.
    if constexpr (sizeof(From) == 32 && sizeof(To) == 64) return _mm512_maskz_cvtps_pd(0xff, from);
#endif
    return __builtin_convertvector(from, To);
}
#else
template <class T, int count>
using Pack = T;

template <class To, class From>
NFD_FAST_INLINE To convert_pack(From from) {
    return static_cast<To>(from);
}
#endif

// The low halves of lanes, side by side.
static inline void store_low_words(Lanes lanes, std::uint32_t* to) {
    const auto words = convert_pack<Pack<std::uint32_t, kLanes>>(lanes);
    __builtin_memcpy(to, &words, sizeof(words));
}

template <class T>
constexpr int kPack =
    static_cast<int>(sizeof(Lanes) / sizeof(std::uint64_t) == 1 ? 1 : sizeof(Lanes) / sizeof(T));

template <class P, class T>
NFD_FAST_INLINE P load_pack(const T* from) {
    P pack;
    __builtin_memcpy(&pack, from, sizeof(P));
    return pack;
}

template <class P, class T>
NFD_FAST_INLINE void store_pack(P pack, T* to) {
    __builtin_memcpy(to, &pack, sizeof(P));
}

// The same number in every place. (Less a zero of a pack, which changes nothing: adding to one
// would turn -0 into 0, and cost an instruction.)
template <class P, class T>
NFD_FAST_INLINE P broadcast_pack(T value) {
    return value - P{};
}

// The sum of the places of a pack, halves first.
#if defined(__GNUC__) && defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define NFD_FAST_SHUFFLES 1
#endif
#endif
#if NFD_FAST_SHUFFLES
template <class T, class P, int... lane>
NFD_FAST_INLINE T sum_of_lanes(P pack, std::integer_sequence<int, lane...>) {
    constexpr int half = sizeof...(lane);
    const auto sum = __builtin_shufflevector(pack, pack, lane...) +
                     __builtin_shufflevector(pack, pack, (lane + half)...);
    if constexpr (half == 1) {
        return sum[0];
    } else {
        return sum_of_lanes<T>(sum, std::make_integer_sequence<int, half / 2>());
    }
}
#endif

template <class T, class P>
NFD_FAST_INLINE T sum_of_pack(P pack) {
    constexpr int count = sizeof(P) / sizeof(T);
#if NFD_FAST_SHUFFLES
    if constexpr (count > 1) {
        return sum_of_lanes<T>(pack, std::make_integer_sequence<int, count / 2>());
    }
#endif
    T lane[count];
    __builtin_memcpy(lane, &pack, sizeof(P));
    for (int half = count / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    }
    return lane[0];
}

// Asks for the cache line at an address, which may be any, into the second level of the cache: what
// is asked for a tile ahead would drive what this tile works on out of the first (a fifth of the
// time of a sweep).
template <class T>
NFD_FAST_INLINE void prefetch(const T* at) {
#if defined(__GNUC__)
    __builtin_prefetch(at, 0, 2);
#else
    static_cast<void>(at);
#endif
}

template <class T>
constexpr std::int64_t kCacheLine = 64 / static_cast<std::int64_t>(sizeof(T));

// a b + c with one rounding where the instruction set has it (contraction is off: see CMakeLists).
template <class P>
NFD_FAST_INLINE P multiply_add(P a, P b, P c) {
    return a * b + c;
}
#if defined(__GNUC__) && defined(__AVX512F__)
NFD_FAST_INLINE Pack<float, 16> multiply_add(Pack<float, 16> a, Pack<float, 16> b,
                                             Pack<float, 16> c) {
    return _mm512_fmadd_ps(a, b, c);
}
NFD_FAST_INLINE Pack<double, 8> multiply_add(Pack<double, 8> a, Pack<double, 8> b,
                                             Pack<double, 8> c) {
    return _mm512_fmadd_pd(a, b, c);
}
#elif defined(__GNUC__) && defined(__FMA__)
NFD_FAST_INLINE Pack<float, 8> multiply_add(Pack<float, 8> a, Pack<float, 8> b, Pack<float, 8> c) {
    return _mm256_fmadd_ps(a, b, c);
}
NFD_FAST_INLINE Pack<double, 4> multiply_add(Pack<double, 4> a, Pack<double, 4> b,
                                             Pack<double, 4> c) {
    return _mm256_fmadd_pd(a, b, c);
}
#endif

}  // namespace NFD_FAST_TARGET
}  // namespace nfd_fast
