// Standard normal numbers from random words: the transform of the noise contract.
//
// Largest errors against the exact transform of the same words: 4.8 ulp in float, 3.7 in double,
// over 2e7 (float) and 4e6 (double) random pairs, a third of them crowded towards u = 0, u = 1 and
// the multiples of an eighth of a turn, and all near neighbours of these.

#pragma once

#include <cmath>
#include <cstdint>

#include "config.hpp"
#include "elementary.hpp"

namespace nfd_fast {
inline namespace NFD_FAST_TARGET {

/// -2 log u for a number u = 2^e (1 + f), sqrt(1/2) <= 1+f <= sqrt(2), with
/// log(1+f) = s (2 + s^2 P(s^2)), s = f/(2+f).
template <class T>
NFD_FAST_INLINE T minus_two_log(T e, T f) {
    using C = Coefficients<T>;
    const T s = quotient(f, T(2) + f);
    const T z = s * s;
    const T log1p = fused_multiply_add(s * z, evaluate(C::log_factor(), z), s + s);
    return T(-2) * fused_multiply_add(e, C::log_2, log1p);
}

/// u = 2^exponent mantissa, sqrt(1/2) <= mantissa < sqrt(2).
template <class T>
struct BinaryDecomposition {
    T exponent;
    T mantissa;
};

template <class T>
NFD_FAST_INLINE BinaryDecomposition<T> decompose(T u) {
    using F = FloatFormat<T>;
    // Adding the distance from sqrt(1/2) to 1 carries into the exponent field from sqrt(1/2) on.
    const Bits<T> one = to_bits(T(1));
    const Bits<T> exponent =
        (to_bits(u) + (one - to_bits(Coefficients<T>::sqrt_half))) >> F::fraction_bits;
    const Bits<T> bias = static_cast<Bits<T>>(F::exponent_bias);
    const T mantissa = from_bits<T>(to_bits(u) - ((exponent - bias) << F::fraction_bits));
    // The small integer becomes a number in the last bits of 2^fraction_bits: no conversion.
    const T shift = T(Bits<T>{1} << F::fraction_bits);
    return {from_bits<T>(exponent | to_bits(shift)) - (shift + T(F::exponent_bias)), mantissa};
}

/// sqrt(-2 log u) with u = (word + 1/2) 2^-32.
template <class T>
NFD_FAST_INLINE T radius(std::uint32_t word) {
    if constexpr (sizeof(T) == sizeof(float)) {
        // Let v be the distance to the nearer end of (0, 1), computed from the integer, so that it
        // keeps its relative accuracy when u -> 1 and log u = log1p(-v). A signed conversion is
        // enough for it, the only one that every vector instruction set has.
        const std::uint32_t upper_half = 0U - (word >> 31);
        const auto distance = static_cast<std::int32_t>(word ^ upper_half);
        const T v = fused_multiply_add(static_cast<T>(distance), T(0x1p-32), T(0x1p-33));
        const T u = upper_half != 0U ? T(1) - v : v;
        const auto [e, mantissa] = decompose(u);
        return square_root(minus_two_log(e, e == T(0) ? -v : mantissa - T(1)));
    } else {
        // u is exact: the word fills the last bits of 2^52, and 2^52 - 1/2 is a double.
        const T u = (from_bits<T>(word | to_bits(T(0x1p52))) - T(0x1p52 - 0.5)) * T(0x1p-32);
        const auto [e, mantissa] = decompose(u);
        return square_root(minus_two_log(e, mantissa - T(1)));
    }
}

template <class T>
struct NormalPair {
    T first;   // radius times cosine
    T second;  // radius times sine
};

/// Two independent standard normals from two words (Box and Muller, 1958):
///     sqrt(-2 log u0) (cos 2 pi u1, sin 2 pi u1),  u = (word + 1/2) 2^-32.
/// The angle is reduced in integers, exactly: the nearest quarter turn from the top two bits, and
/// an odd number of 2^-33 turns that remains. Hence relative accuracy near the zeros of both.
template <class T>
NFD_FAST_INLINE NormalPair<T> box_muller(std::uint32_t word_0, std::uint32_t word_1) {
    using C = Coefficients<T>;
    const T r = radius<T>(word_0);

    // Shifting the quarter turns out at the top keeps the rest as a signed number.
    const std::int32_t rest = (static_cast<std::int32_t>(word_1 << 2) >> 1) | 1;
    const T z = static_cast<T>(rest) * T(0x1p-30);  // in eighths of a turn
    const T sine = r * (z * evaluate(C::sin_factor(), z * z));
    // One chain, not the two of `evaluate`: the logarithm fills the time that it waits.
    const T cosine = r * horner<0, 1>(C::cos_factor(), z * z);

    // Quarter turns 0, 1, 2, 3 in the top two bits: the lower exchanges sine and cosine, the upper
    // is the sign of the sine, and of the cosine one quarter turn later.
    constexpr int bits = 8 * sizeof(T);
    const Bits<T> turns = static_cast<Bits<T>>(word_1 + (1U << 29)) << (bits - 32);
    const Bits<T> quarter = Bits<T>{1} << (bits - 2);
    // SSE2 compares no 64-bit integers, but as a double the bit is 2 or 0. In float the integer
    // comparison is faster by a tenth.
    const bool exchanged =
        sizeof(T) == sizeof(float) ? (turns & quarter) != 0 : from_bits<T>(turns & quarter) > T(0);
    const T first = exchanged ? sine : cosine;
    const T second = exchanged ? cosine : sine;
    return {from_bits<T>(to_bits(first) ^ ((turns + quarter) & sign_mask<T>())),
            from_bits<T>(to_bits(second) ^ (turns & sign_mask<T>()))};
}

}  // namespace NFD_FAST_TARGET
}  // namespace nfd_fast
