// Kernels of infinitely wide networks at initialisation.
#pragma once

#include <cstdint>

#include "nfd_fast/activations.hpp"
#include "nfd_fast/gaussian_moments.hpp"
#include "training/monitor.hpp"

namespace nfd_fast {

// Moments of `count` pairs with variances a, b and covariances c, by closed form or quadrature.
void gaussian_moments(Activation activation, std::int64_t count, const double* a, const double* b,
                      const double* c, double* product, double* slope_product, Monitor& monitor,
                      int threads);

// The kernels of an infinitely wide network of `depth` layers; all (.., batch, batch),
// C-contiguous, with factor = beta^2:
//     products_l = E[phi phi](S_{l-1}),  S_l = S_{l-1} + factor products_l      (l = 1 ... depth)
//     G_{l-1} = G_l + factor G_l o E[phi' phi'](S_{l-1}),  G_depth = 1
// without S_{l-1} and G_l as first terms if there is no skip. `features` and `adjoints` have
// depth + 1 matrices, S_0 given; `products` has depth.
struct InitialKernels {
    std::int64_t batch, depth;
    double factor;
    bool skip;
    Activation activation;
    double *features, *adjoints, *products;
};
void initial_kernels(const InitialKernels& kernels, Monitor& monitor, int threads);

}  // namespace nfd_fast
