// One layer of the conditional representation on given arrays (DESIGN 2), as every device sees it:
//     out[b] = state[b] + sum_i images[i] c1[i][b] + sum_j directions[j] c2[j][b]
//                       + sum_c Xi_c c3[c][b].
// Coefficients are rounded to T; an entry is the sum in this order, one fused operation a term. Xi
// is drawn as it is needed and never stored whole.
#pragma once

#include <cstdint>

#include "nfd_fast/philox.hpp"

namespace nfd_fast {

template <class T>
struct EulerMaruyamaStep {
    std::int64_t width, batch;
    const T* state;  // (B, n)

    std::int64_t image_count;
    const T* images;                   // (p, n)
    const double* image_coefficients;  // (p, B)

    std::int64_t direction_count;
    const T* directions;                   // (q, n)
    const double* direction_coefficients;  // (q, B)

    NoiseAddress noise;
    std::int64_t column_count;
    const std::uint32_t* columns;      // (m) of the noise
    const double* noise_coefficients;  // (m, B)
};

}  // namespace nfd_fast
