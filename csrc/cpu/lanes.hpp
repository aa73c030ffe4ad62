// The register of 64-bit lanes that Philox runs in, for the instruction set being compiled.
#pragma once

#include <cstdint>

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

// first, first + 1, ..., one per lane.
static inline Lanes consecutive_lanes(std::uint64_t first) {
    std::uint64_t values[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
        values[lane] = first + static_cast<std::uint64_t>(lane);
    }
    Lanes lanes;
    __builtin_memcpy(&lanes, values, sizeof(lanes));
    return lanes;
}

}  // namespace NFD_FAST_TARGET
}  // namespace nfd_fast
