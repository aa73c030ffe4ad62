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

/// A polynomial times a power of two: all that is rounded scales with it.
template <class T, int Size>
NFD_FAST_INLINE constexpr Polynomial<T, Size> scaled(Polynomial<T, Size> polynomial, T power) {
    for (T& coefficient : polynomial.coefficient) coefficient *= power;
    return polynomial;
}

/// u = 2^(unit exponent) mantissa, sqrt(1/2) <= mantissa < sqrt(2).
template <class T>
struct BinaryDecomposition {
    static constexpr T unit = sizeof(T) == sizeof(float) ? T(0x1p-23) : T(1);
    T exponent;
    T mantissa;
};

template <class T>
NFD_FAST_INLINE BinaryDecomposition<T> decompose(T u) {
    using F = FloatFormat<T>;
    const Bits<T> sqrt_half = to_bits(Coefficients<T>::sqrt_half);
    if constexpr (sizeof(T) == sizeof(float)) {
        // The exponent field of the difference to sqrt(1/2), which is converted where it stands.
        const Bits<T> exponent = (to_bits(u) - sqrt_half) & (~Bits<T>{0} << F::fraction_bits);
        return {static_cast<T>(static_cast<std::int32_t>(exponent)),
                from_bits<T>(to_bits(u) - exponent)};
    } else {
        // Adding the distance from it to 1 carries into the exponent field from sqrt(1/2) on.
        const Bits<T> exponent = (to_bits(u) + (to_bits(T(1)) - sqrt_half)) >> F::fraction_bits;
        const Bits<T> bias = static_cast<Bits<T>>(F::exponent_bias);
        const T mantissa = from_bits<T>(to_bits(u) - ((exponent - bias) << F::fraction_bits));
        // The small integer becomes a number in the last bits of 2^fraction_bits: few instruction
        // sets convert 64 bits.
        const T shift = T(Bits<T>{1} << F::fraction_bits);
        return {from_bits<T>(exponent | to_bits(shift)) - (shift + T(F::exponent_bias)), mantissa};
    }
}

/// -2 log u for a number u = 2^(unit e) (1 + f), sqrt(1/2) <= 1+f <= sqrt(2), with
/// log(1+f) = s (2 + s^2 P(s^2)), s = f/(2+f). The factor -2 is part of the constants.
template <class T>
NFD_FAST_INLINE T minus_two_log(T e, T f) {
    using C = Coefficients<T>;
    const T s = quotient(f, T(2) + f);
    const T z = s * s;
    const T log1p =
        fused_multiply_add(s * z, evaluate(scaled(C::log_factor(), T(-2)), z), T(-4) * s);
    return fused_multiply_add(e, T(-2) * BinaryDecomposition<T>::unit * C::log_2, log1p);
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
        // u is exact: the word fills the last bits of 2^20, and 2^20 - 2^-33 is a double.
        const T u = from_bits<T>(word | to_bits(T(0x1p20))) - T(0x1p20 - 0x1p-33);
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
    // Quarter turns 0, 1, 2, 3 in the top two bits: the lower exchanges sine and cosine and turns
    // the sign of the first, the upper turns both signs.
    constexpr int bits = 8 * sizeof(T);
    const Bits<T> turns = static_cast<Bits<T>>(word_1 + (1U << 29)) << (bits - 32);
    const Bits<T> quarter = Bits<T>{1} << (bits - 2);
    const T r = from_bits<T>(to_bits(radius<T>(word_0)) ^ (turns & sign_mask<T>()));

    // Shifting the quarter turns out at the top keeps the rest as a signed number.
    const auto rest = static_cast<std::int32_t>(4 * word_1 + 2);
    const T z = static_cast<T>(rest) * T(0x1p-31);  // in eighths of a turn
    const T sine = r * (z * evaluate(C::sin_factor(), z * z));
    // One chain, not the two of `evaluate`: the logarithm fills the time that it waits.
    const T cosine = r * horner<0, 1>(C::cos_factor(), z * z);

    // SSE2 compares no 64-bit integers, but as a double the bit is 2 or 0. In float the integer
    // comparison is faster by a tenth; with != CUDA's compiler would shift the bit down first.
    const bool kept =
        sizeof(T) == sizeof(float) ? (turns & quarter) == 0 : from_bits<T>(turns & quarter) == T(0);
    return {kept ? cosine : -sine, kept ? sine : cosine};
}

}  // namespace NFD_FAST_TARGET
}  // namespace nfd_fast
