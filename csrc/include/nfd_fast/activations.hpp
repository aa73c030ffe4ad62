// The activations: one table, from which C++, CUDA, Python and the documentation are served.
//
// `value` and `derivative` are straight-line code like everything in elementary.hpp. Infinite
// arguments give the limit, no finite argument overflows on the way, and NaN gives NaN (except in
// the derivative of the identity, which does not look at its argument).
//
// Largest errors in ulp, without / with fused multiply-add, by the sweep of elementary.hpp; gelu'
// and silu', which have a zero, relative to max(|f'|, 0.1). Results below the normal numbers are
// within 2.3 units of the smallest positive number.
//
//                  float value   derivative      double value   derivative
//     tanh         5.5 / 4.9     4.0 / 3.9       2.5 / 2.5      3.2 / 3.2
//     erf          3.9 / 3.9     3.3 / 1.9       3.0 / 3.0      1.3 / 1.2
//     gelu         5.6 / 4.9     5.5 / 4.9       5.0 / 4.2      3.7 / 3.6
//     silu         2.8 / 2.6     4.3 / 4.1       2.2 / 2.2      3.4 / 3.2
//     softplus     2.8 / 2.8     2.4 / 2.4       2.8 / 2.8      2.1 / 2.1

#pragma once

#include <string_view>

#include "elementary.hpp"

/// X(name, formula). The order fixes the numbers of `Activation`, which are stored and passed
/// between languages: append, never reorder.
#define NFD_FAST_ACTIVATIONS(X)                               \
    X(identity, "x")                                          \
    X(relu, "max(x, 0), with derivative 0 at 0")              \
    X(abs, "|x|, with derivative 0 at 0")                     \
    X(tanh, "tanh(x)")                                        \
    X(erf, "erf(x)")                                          \
    X(gelu, "x Phi(x), Phi the normal distribution function") \
    X(silu, "x / (1 + exp(-x))")                              \
    X(softplus, "log(1 + exp(x))")

namespace nfd_fast {
inline namespace NFD_FAST_TARGET {

namespace activation {

struct identity {
    template <class T>
    NFD_FAST_INLINE static T value(T x) {
        return x;
    }

    template <class T>
    NFD_FAST_INLINE static T derivative(T) {
        return T(1);
    }
};

struct relu {
    template <class T>
    NFD_FAST_INLINE static T value(T x) {
        return at_least(x, T(0));
    }

    // The last x is a zero or NaN.
    template <class T>
    NFD_FAST_INLINE static T derivative(T x) {
        return x > T(0) ? T(1) : x < T(0) ? T(0) : x;
    }
};

struct abs {
    template <class T>
    NFD_FAST_INLINE static T value(T x) {
        return absolute(x);
    }

    template <class T>
    NFD_FAST_INLINE static T derivative(T x) {
        return x > T(0) ? T(1) : x < T(0) ? T(-1) : x;
    }
};

struct tanh {
    template <class T>
    NFD_FAST_INLINE static T value(T x) {
        return hyperbolic_tangent(x);
    }

    /// sech^2 x = 4e/(1+e)^2 with e = e^(-2|x|); 1 - tanh^2 would lose the tail.
    template <class T>
    NFD_FAST_INLINE static T derivative(T x) {
        const T t = at_most(absolute(x), FloatFormat<T>::exp_limit / T(2));
        const auto e = scaled_exponential(T(-2) * t);
        const T denominator = T(1) + e.value();
        return e.times(quotient(T(4), denominator * denominator));
    }
};

struct erf {
    template <class T>
    NFD_FAST_INLINE static T value(T x) {
        return error_function(x);
    }

    /// 2/sqrt(pi) e^(-x^2)
    template <class T>
    NFD_FAST_INLINE static T derivative(T x) {
        const T t = at_most(absolute(x), FloatFormat<T>::exp_square_limit);
        return scaled_exponential_of_square(T(-1), t).times(Coefficients<T>::two_over_sqrt_pi);
    }
};

// gelu, silu and softplus are relu plus an even function that decays at both ends:
//     gelu x = relu x - t (1 - Phi(t)),  silu x = relu x - t e/(1+e),  softplus x = relu x +
//     log(1+e)
// with t = |x|, e = e^-t. One formula serves both signs, the negative tail has relative accuracy,
// and on the positive side, where terms are subtracted, the result is never below half of relu x.
// The derivatives of gelu and silu satisfy f'(x) + f'(-x) = 1: the negative side is computed.

struct gelu {
    template <class T>
    NFD_FAST_INLINE static T value(T x) {
        const T t = at_most(absolute(x), Coefficients<T>::gauss_limit);
        const auto gaussian = scaled_exponential_of_square(T(-0.5), t);
        return at_least(x, T(0)) - gaussian.times(t * scaled_gaussian_tail(t));
    }

    /// f'(-t) = (1 - Phi(t)) - t phi(t), phi the normal density
    template <class T>
    NFD_FAST_INLINE static T derivative(T x) {
        const T t = at_most(absolute(x), Coefficients<T>::gauss_limit);
        const auto gaussian = scaled_exponential_of_square(T(-0.5), t);
        const T negative_side = gaussian.times(scaled_gelu_slope(t));
        return x < T(0) ? negative_side : T(1) - negative_side;
    }
};

struct silu {
    template <class T>
    NFD_FAST_INLINE static T value(T x) {
        const T t = at_most(absolute(x), FloatFormat<T>::exp_limit);
        const auto e = scaled_exponential(-t);
        return at_least(x, T(0)) - e.times(quotient(t, T(1) + e.value()));
    }

    /// f'(-t) = e (1 + e - t)/(1 + e)^2
    template <class T>
    NFD_FAST_INLINE static T derivative(T x) {
        const T t = at_most(absolute(x), FloatFormat<T>::exp_limit);
        const auto e = scaled_exponential(-t);
        const T one_plus_e = T(1) + e.value();
        const T negative_side = e.times(quotient(one_plus_e - t, one_plus_e * one_plus_e));
        return x < T(0) ? negative_side : T(1) - negative_side;
    }
};

struct softplus {
    template <class T>
    NFD_FAST_INLINE static T value(T x) {
        const T t = at_most(absolute(x), FloatFormat<T>::exp_limit);
        return at_least(x, T(0)) + log1p_unit(scaled_exponential(-t).value());
    }

    /// 1/(1 + e^-x)
    template <class T>
    NFD_FAST_INLINE static T derivative(T x) {
        const T t = at_most(absolute(x), FloatFormat<T>::exp_limit);
        const T e = scaled_exponential(-t).value();
        return quotient(x < T(0) ? e : T(1), T(1) + e);
    }
};

}  // namespace activation

enum class Activation : int {
#define NFD_FAST_ENUMERATOR(name, formula) name,
    NFD_FAST_ACTIVATIONS(NFD_FAST_ENUMERATOR)
#undef NFD_FAST_ENUMERATOR
};

#define NFD_FAST_COUNT(name, formula) +1
inline constexpr int activation_count = 0 NFD_FAST_ACTIVATIONS(NFD_FAST_COUNT);
#undef NFD_FAST_COUNT

struct ActivationInfo {
    Activation activation;
    std::string_view name;
    std::string_view formula;
};

/// The table in order of the enumerators.
inline constexpr ActivationInfo activation_table[activation_count] = {
#define NFD_FAST_ROW(name, formula) {Activation::name, #name, formula},
    NFD_FAST_ACTIVATIONS(NFD_FAST_ROW)
#undef NFD_FAST_ROW
};

/// Calls f(activation::relu{}) or whichever is asked for, so that f is compiled once for each and
/// the choice stays outside its loop. Host only: the choice is made where a kernel is launched. A
/// value that is no enumerator calls nothing; find_activation is where names are checked.
template <class F>
void with_activation(Activation choice, F&& f) {
    switch (choice) {
#define NFD_FAST_CASE(name, formula) \
    case Activation::name:           \
        f(activation::name{});       \
        return;
        NFD_FAST_ACTIVATIONS(NFD_FAST_CASE)
#undef NFD_FAST_CASE
    }
}

}  // namespace NFD_FAST_TARGET
}  // namespace nfd_fast
