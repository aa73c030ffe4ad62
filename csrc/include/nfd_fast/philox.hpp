// Philox4x32-10 counter-based random words and how logical indices address them.
//
// Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC'11). A word is a
// pure function of (key, counter), so any thread, lane, block or device can compute any of them.
#pragma once

#include <cstdint>

#include "nfd_fast/config.hpp"

namespace nfd_fast {

// What a word is used for: the tag field of the counter. The order is part of every stored result.
#define NFD_FAST_STREAMS(X) \
    X(input)                \
    X(readout)              \
    X(hidden)               \
    X(backward_hidden)      \
    X(forward_noise)        \
    X(backward_noise)       \
    X(data)                 \
    X(spare)

enum class Stream : std::uint32_t {
#define NFD_FAST_STREAM_ENUMERATOR(name) name,
    NFD_FAST_STREAMS(NFD_FAST_STREAM_ENUMERATOR)
#undef NFD_FAST_STREAM_ENUMERATOR
};

// The counter words c1 and the key that every word of one (seed, stream, layer) shares:
// key = (seed mod 2^32, seed / 2^32), c1 = tag * 2^24 + (fine layer - 1); c3 = 0 is reserved.
struct NoiseAddress {
    std::uint32_t key0, key1, c1;
};

// `layer` counts fine layers from 1, at most 2^24; input, readout and data use layer 1.
NFD_FAST_HD constexpr NoiseAddress noise_address(std::uint64_t seed, Stream stream,
                                                 std::int64_t layer) {
    return {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32),
            (static_cast<std::uint32_t>(stream) << 24) | static_cast<std::uint32_t>(layer - 1)};
}

inline namespace NFD_FAST_TARGET {

// The 32 x 32 -> 64 bit product of a lane's low half. A vector backend specialises this for its
// register type; the upper half of a lane never needs to be cleared between rounds.
template <class Lane>
struct LaneOperations;

template <>
struct LaneOperations<std::uint64_t> {
    NFD_FAST_INLINE static std::uint64_t multiply(std::uint64_t lane, std::uint32_t factor) {
        return static_cast<std::uint64_t>(static_cast<std::uint32_t>(lane)) * factor;
    }
};

// Halves of a product, each in the low 32 bits of a lane.
template <class Lane>
struct Product {
    Lane high, low;
};

template <class Lane>
NFD_FAST_INLINE Product<Lane> product(Lane lane, std::uint32_t factor) {
    const Lane wide = LaneOperations<Lane>::multiply(lane, factor);
    return {wide >> 32, wide};
}

// For a GPU, whose registers have 32 bits. Told so, or its compiler would carry 64 through a round.
NFD_FAST_INLINE Product<std::uint32_t> product(std::uint32_t lane, std::uint32_t factor) {
#if defined(__CUDA_ARCH__)
    Product<std::uint32_t> halves;
    asm("{ .reg .u64 wide; mul.wide.u32 wide, %2, %3; mov.b64 {%1, %0}, wide; }"
        : "=r"(halves.high), "=r"(halves.low)
        : "r"(lane), "r"(factor));
    return halves;
#else
    const std::uint64_t wide = static_cast<std::uint64_t>(lane) * factor;
    return {static_cast<std::uint32_t>(wide >> 32), static_cast<std::uint32_t>(wide)};
#endif
}

template <class Lane>
struct PhiloxCounter {
    Lane c0, c1, c2, c3;  // each word sits in the low 32 bits of a lane
};

template <class Lane>
NFD_FAST_INLINE void philox_round(PhiloxCounter<Lane>& c, std::uint32_t key0, std::uint32_t key1) {
    const Product<Lane> p0 = product(c.c0, 0xD2511F53u);
    const Product<Lane> p1 = product(c.c2, 0xCD9E8D57u);
    c.c0 = p1.high ^ c.c1 ^ key0;
    c.c1 = p1.low;
    c.c2 = p0.high ^ c.c3 ^ key1;
    c.c3 = p0.low;
}

// Ten rounds on `chains` independent counters, interleaved by round: one alone waits for the
// multiplier. Four are faster than two by a tenth, although AVX2 has not the registers for them.
template <int chains, class Lane>
NFD_FAST_INLINE void philox4x32(PhiloxCounter<Lane> (&counters)[chains], std::uint32_t key0,
                                std::uint32_t key1) {
    NFD_FAST_UNROLL
    for (int round = 0; round < 10; ++round) {
        NFD_FAST_UNROLL
        for (int chain = 0; chain < chains; ++chain) philox_round(counters[chain], key0, key1);
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}

}  // namespace NFD_FAST_TARGET
}  // namespace nfd_fast
