// E[phi(u) phi(v)] and E[phi'(u) phi'(v)] of centred Gaussian pairs, where they have closed forms.
//
// With a = var u, b = var v, c = cov(u, v), theta the angle atan2(sqrt(ab - c^2), c):
//     relu  sqrt(ab) (sin theta + (pi - theta) cos theta)/(2 pi),  (pi - theta)/(2 pi)
//     abs   (2/pi) sqrt(ab) (sin theta + (pi/2 - theta) cos theta),  1 - 2 theta/pi
//     erf   (2/pi) asin(2c/sqrt((1+2a)(1+2b))),  (4/pi)/sqrt((1+2a)(1+2b) - 4c^2)
// Cho & Saul, Kernel methods for deep learning (2009); Williams, Computing with infinite networks
// (1997).
#pragma once

#include <cmath>

#include "nfd_fast/activations.hpp"

namespace nfd_fast {
inline namespace NFD_FAST_TARGET {

struct GaussianMoments {
    double product;        // E[phi(u) phi(v)]
    double slope_product;  // E[phi'(u) phi'(v)]
};

NFD_FAST_HD constexpr bool has_closed_moments(Activation activation) {
    return activation == Activation::identity || activation == Activation::relu ||
           activation == Activation::abs || activation == Activation::erf;
}

// For an activation with closed moments; others give NaN. A variance of zero is a constant zero,
// where relu and abs have slope zero.
NFD_FAST_HD inline GaussianMoments closed_moments(Activation activation, double a, double b,
                                                  double c) {
    constexpr double pi = 3.14159265358979323846;
    // Where products of variances leave the range of numbers: both are homogeneous.
    const bool far_away = a > 0 && b > 0 && !(a * b > 1e-250 && a * b < 1e250);
    if (far_away && (activation == Activation::relu || activation == Activation::abs)) {
        const double scale = ::sqrt(a) * ::sqrt(b), cosine = c / scale;
        const GaussianMoments unit = closed_moments(activation, 1, 1,
                                                    cosine > 1    ? 1
                                                    : cosine < -1 ? -1
                                                                  : cosine);
        return {scale * unit.product, unit.slope_product};
    }
    const double gap = a * b - c * c;
    const double sine = ::sqrt(gap > 0 ? gap : 0.0);  // times sqrt(ab), like c
    const double theta = ::atan2(sine, c);
    const bool constant = a == 0 || b == 0;
    switch (activation) {
        case Activation::identity:
            return {c, 1.0};
        case Activation::relu:
            if (constant) return {0.0, 0.0};
            return {(sine + (pi - theta) * c) / (2 * pi), (pi - theta) / (2 * pi)};
        case Activation::abs:
            if (constant) return {0.0, 0.0};
            return {2 / pi * (sine + (pi / 2 - theta) * c), 1 - 2 * theta / pi};
        case Activation::erf: {
            const double root = ::sqrt(1 + 2 * a + 2 * b + 4 * (gap > 0 ? gap : 0.0));
            return {2 / pi * ::atan2(2 * c, root), 4 / (pi * root)};
        }
        default:
            return {NAN, NAN};
    }
}

}  // namespace NFD_FAST_TARGET
}  // namespace nfd_fast
