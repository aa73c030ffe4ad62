// Elementary functions of float and double that a compiler can vectorise and a GPU can run.
//
// Every function is straight-line code: both sides of a choice are computed and one is selected,
// integers reach into floating-point bits, nothing is looked up and nothing is called. A loop
// `#pragma omp simd` over any of them becomes vector code, and because each operation is exactly
// rounded (compile with -ffp-contract=off), a vector lane and a scalar remainder give equal bits.
// NaN goes in, NaN comes out.
//
// Largest errors in ulp, without / with fused multiply-add (the same for AVX2 and AVX-512), where
// the result is a normal number; below, at most 1 unit of the smallest positive number:
//
//                               float          double
//     exponential               1.1 / 1.1      1.0 / 1.1
//     one_minus_exponential     1.1 / 1.1      1.1 / 1.2
//     log1p_unit                2.0 / 2.0      2.0 / 2.0
//     hyperbolic_tangent        5.5 / 4.9      2.5 / 2.5
//     error_function            3.9 / 3.9      3.0 / 3.0
//     scaled_gaussian_tail      5.0 / 4.4      4.0 / 3.9
//
// Sweep: float, every third number of magnitude 2^-12 to 2^8 and every 997th of all, against double
// functions; double, 60 000 points stratified over all exponents, both signs and the places where
// n or a saturation changes, against 200-bit arithmetic.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "coefficients.hpp"
#include "config.hpp"

namespace nfd_fast {
inline namespace NFD_FAST_TARGET {

/// The layout of a floating-point type and the range of its exponential.
template <class T>
struct FloatFormat;

template <>
struct FloatFormat<float> {
    using Bits = std::uint32_t;
    static constexpr int fraction_bits = 23;
    static constexpr int exponent_bias = 127;
    static constexpr float integer_shift = 0x1.8p23F;  // adding it rounds to an integer
    static constexpr float exp_limit = 115.0F;         // t^2 e^-t is zero from here on
    static constexpr float exp_overflow = 90.0F;       // e^t is infinite from here on
    static constexpr float exp_square_limit = 10.6F;   // e^(-t^2) is zero from here on
};

template <>
struct FloatFormat<double> {
    using Bits = std::uint64_t;
    static constexpr int fraction_bits = 52;
    static constexpr int exponent_bias = 1023;
    static constexpr double integer_shift = 0x1.8p52;
    static constexpr double exp_limit = 760.0;
    static constexpr double exp_overflow = 711.0;
    static constexpr double exp_square_limit = 27.5;
};

template <class T>
using Bits = typename FloatFormat<T>::Bits;

template <class T>
NFD_FAST_INLINE Bits<T> to_bits(T x) {
    Bits<T> bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

template <class T>
NFD_FAST_INLINE T from_bits(Bits<T> bits) {
    T x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

template <class T>
NFD_FAST_INLINE Bits<T> sign_mask() {
    return Bits<T>{1} << (8 * sizeof(T) - 1);
}

template <class T>
NFD_FAST_INLINE T absolute(T x) {
    return from_bits<T>(to_bits(x) & ~sign_mask<T>());
}

/// `magnitude`, which is not negative, with the sign of `x`.
template <class T>
NFD_FAST_INLINE T with_sign_of(T x, T magnitude) {
    return from_bits<T>(to_bits(magnitude) | (to_bits(x) & sign_mask<T>()));
}

/// The smaller of the two; NaN if x is NaN. Written so that it is one `min` instruction.
template <class T>
NFD_FAST_INLINE T at_most(T x, T limit) {
    return limit < x ? limit : x;
}

/// The larger of the two; NaN if x is NaN.
template <class T>
NFD_FAST_INLINE T at_least(T x, T limit) {
    return limit > x ? limit : x;
}

/// a b + c, rounded once where the hardware can (NFD_FAST_HAS_FMA), twice elsewhere.
template <class T>
NFD_FAST_INLINE T fused_multiply_add(T a, T b, T c) {
#if NFD_FAST_HAS_FMA
#if defined(__GNUC__) && !defined(__CUDACC__)
    // The builtins stay inline in an unoptimised build too: the functions of the library would be
    // instantiated there outside NFD_FAST_TARGET.
    if constexpr (sizeof(T) == sizeof(float)) {
        return __builtin_fmaf(a, b, c);
    } else {
        return __builtin_fma(a, b, c);
    }
#else
    return std::fma(a, b, c);
#endif
#else
    return a * b + c;
#endif
}

/// The sum of every `Step`-th term from `First` on, by Horner's rule in `power` = x^Step. The
/// recursion has compile-time indices, so that no array is left at run time.
template <int First, int Step, class T, int Size>
NFD_FAST_INLINE T horner(const Polynomial<T, Size>& polynomial, T power) {
    if constexpr (First + Step >= Size) {
        return polynomial.coefficient[First];
    } else {
        return fused_multiply_add(horner<First + Step, Step>(polynomial, power), power,
                                  polynomial.coefficient[First]);
    }
}

/// a / b, for b far from the ends of the exponents' range. (On a GPU a result that is close to them
/// may be off by 2 ulp.)
template <class T>
NFD_FAST_INLINE T quotient(T a, T b) {
#if defined(__CUDA_ARCH__)
    // CUDA's own also serves the ends, and takes twice the instructions and a branch for that. A
    // remainder corrects what the approximation misses but for a hundredth of an ulp.
    T inverse;
    if constexpr (sizeof(T) == sizeof(float)) {
        asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(b));
    } else {
        asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(inverse) : "d"(b));
        // A step of third order, from 20 bits to 53.
        const T error = std::fma(-b, inverse, T(1));
        inverse = std::fma(std::fma(error, error, error), inverse, inverse);
    }
    const T first = a * inverse;
    return std::fma(std::fma(-b, first, a), inverse, first);
#else
    return a / b;
#endif
}

/// The square root of a positive number far from the ends of the exponents' range.
template <class T>
NFD_FAST_INLINE T square_root(T x) {
#if defined(__CUDA_ARCH__)
    T inverse;  // as above
    if constexpr (sizeof(T) == sizeof(float)) {
        asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
    } else {
        asm("rsqrt.approx.ftz.f64 %0, %1;" : "=d"(inverse) : "d"(x));
        const T error = std::fma(-(inverse * inverse), x, T(1));
        inverse = std::fma(std::fma(error, T(0.375), T(0.5)) * error, inverse, inverse);
    }
    const T first = x * inverse;
    return std::fma(std::fma(-first, first, x), T(0.5) * inverse, first);
#else
    return std::sqrt(x);
#endif
}

/// P(x), from five terms on summed as even and odd part: two chains of half the length have half
/// the latency (up to 40% of the time in double) and let fewer rounding errors pile up.
template <class T, int Size>
NFD_FAST_INLINE T evaluate(const Polynomial<T, Size>& polynomial, T x) {
    if constexpr (Size < 5) {
        return horner<0, 1>(polynomial, x);
    } else {
        const T square = x * x;
        return fused_multiply_add(horner<1, 2>(polynomial, square), x,
                                  horner<0, 2>(polynomial, square));
    }
}

/// e^x = (1 + q) half_scale scale, not yet multiplied: the product may underflow or overflow where
/// a caller's result, say x e^x, does not.
template <class T>
struct ScaledExponential {
    T q;           // e^r - 1, |r| <= log(2)/2
    T half_scale;  // power of two, about sqrt(e^x)
    T scale;       // power of two

    NFD_FAST_INLINE T value() const {
        return fused_multiply_add(half_scale, q, half_scale) * scale;
    }

    /// y e^x, rounded to the range of T only at the end; also one rounding less than y value().
    NFD_FAST_INLINE T times(T y) const { return fused_multiply_add(y, q, y) * half_scale * scale; }
};

/// x = n log 2 + r with integer n and |r| <= log(2)/2 (Cody and Waite: log 2 in two parts, of which
/// the first times n is exact, so that r keeps its relative accuracy).
template <class T>
struct ExponentReduction {
    Bits<T> biased_exponent;  // n + bias in the lowest bits, above them those of integer_shift
    T remainder;

    /// e^r - 1 = r + r^2 P(r)
    NFD_FAST_INLINE T mantissa_minus_one() const {
        const T factor = evaluate(Coefficients<T>::exp_factor(), remainder);
        return fused_multiply_add(remainder * remainder, factor, remainder);
    }
};

template <class T>
NFD_FAST_INLINE ExponentReduction<T> reduce_exponent(T x, int bias) {
    using C = Coefficients<T>;
    const T shift = FloatFormat<T>::integer_shift + static_cast<T>(bias);
    const T shifted = fused_multiply_add(x, C::log2_e, shift);
    const T n = shifted - shift;
    const T high = fused_multiply_add(n, -C::log_2_high, x);
    return {to_bits(shifted), fused_multiply_add(n, -C::log_2_low, high)};
}

/// e^(x + x_low) for |x| <= exp_limit; x_low is a small correction. 2^n is split in two halves of
/// which each is a normal number.
template <class T, class... Low>
NFD_FAST_INLINE ScaledExponential<T> scaled_exponential(T x, Low... x_low) {
    using F = FloatFormat<T>;
    auto reduced = reduce_exponent(x, 2 * F::exponent_bias);
    reduced.remainder = (reduced.remainder + ... + x_low);
    // The bits above the exponent field are shifted out.
    const Bits<T> half = reduced.biased_exponent >> 1;
    return {reduced.mantissa_minus_one(), from_bits<T>(half << F::fraction_bits),
            from_bits<T>((reduced.biased_exponent - half) << F::fraction_bits)};
}

/// e^(factor t^2), factor = -1 or -1/2. The exponent is carried in two parts: rounding it alone
/// would cost as many half ulps as it is large.
template <class T>
NFD_FAST_INLINE ScaledExponential<T> scaled_exponential_of_square(T factor, T t) {
#if NFD_FAST_HAS_FMA
    const T high = factor * t * t;
    const T low = fused_multiply_add(factor * t, t, -high);
#else
    // Half of the bits of t have an exact square; t^2 = head^2 + (t - head)(t + head).
    const Bits<T> head_mask = ~((Bits<T>{1} << (FloatFormat<T>::fraction_bits / 2 + 1)) - 1);
    const T head = from_bits<T>(to_bits(t) & head_mask);
    const T high = factor * head * head;
    const T low = factor * (t - head) * (t + head);
#endif
    return scaled_exponential(high, low);
}

/// 1 - e^-t, with relative accuracy also at small t, for 0 <= t <= 60: the form of expm1 that the
/// saturating functions need. With e^-t = 2^n (1 + q) it is (1 - 2^n) - 2^n q.
template <class T>
NFD_FAST_INLINE T one_minus_exponential(T t) {
    using F = FloatFormat<T>;
    const auto reduced = reduce_exponent(-t, F::exponent_bias);
    const T power = from_bits<T>(reduced.biased_exponent << F::fraction_bits);
    return fused_multiply_add(-power, reduced.mantissa_minus_one(), T(1) - power);
}

/// log(1 + x) for 0 <= x <= 1, as 2 artanh(s) with s = x/(2+x) <= 1/3: one division buys a series
/// with positive terms in s^2 and relative accuracy down to x = 0 without a second branch.
template <class T>
NFD_FAST_INLINE T log1p_unit(T x) {
    const T s = quotient(x, T(2) + x);
    const T z = s * s;
    return fused_multiply_add(s * z, evaluate(Coefficients<T>::log1p_factor(), z), s + s);
}

/// tanh x, odd by construction and at most 1. In float the rational t P(t^2)/Q(t^2), the fastest
/// form; in double, where that would need too high a degree, w/(2 - w) with w = 1 - e^(-2t), which
/// is small when t is.
template <class T>
NFD_FAST_INLINE T hyperbolic_tangent(T x) {
    using C = Coefficients<T>;
    constexpr T saturation = C::tanh_saturation;
    const T t = absolute(x);
    if constexpr (sizeof(T) == sizeof(float)) {
        const T z = t * t;
        const T ratio = quotient(t * evaluate(C::tanh_ratio_numerator(), z),
                                 evaluate(C::tanh_ratio_denominator(), z));
        // Beyond saturation the ratio means nothing, and z may even overflow.
        return with_sign_of(x, t > saturation ? T(1) : at_most(ratio, T(1)));
    } else {
        const T w = one_minus_exponential(T(2) * at_most(t, saturation));
        return with_sign_of(x, quotient(w, T(2) - w));
    }
}

/// erf x as 1 - e^-L with L = -log erfc t = t R(t). R is smooth and one polynomial serves the whole
/// range, because an error of L enters erf damped by L/(e^L - 1) <= 1.
template <class T>
NFD_FAST_INLINE T error_function(T x) {
    const T t = at_most(absolute(x), Coefficients<T>::erf_saturation);
    return with_sign_of(x, one_minus_exponential(t * evaluate(Coefficients<T>::erf_exponent(), t)));
}

/// Mills' ratio up to a constant: (1 - Phi(t)) e^(t^2/2) = erfcx(t/sqrt 2)/2, the scaled erfc, for
/// 0 <= t <= gauss_limit. A rational function with positive coefficients, hence no cancellation.
template <class T>
NFD_FAST_INLINE T scaled_gaussian_tail(T t) {
    using C = Coefficients<T>;
    return quotient(evaluate(C::mills_numerator(), t), evaluate(C::mills_denominator(), t));
}

/// (1 - Phi(t) - t phi(t)) e^(t^2/2), phi the normal density, for 0 <= t <= gauss_limit: the slope
/// of gelu at -t. One rational function, because the difference of its two terms, which cancel at
/// t = 0.75, would multiply the rounding errors of the first.
template <class T>
NFD_FAST_INLINE T scaled_gelu_slope(T t) {
    using C = Coefficients<T>;
    return quotient(evaluate(C::gelu_slope_numerator(), t),
                    evaluate(C::gelu_slope_denominator(), t));
}

}  // namespace NFD_FAST_TARGET
}  // namespace nfd_fast
