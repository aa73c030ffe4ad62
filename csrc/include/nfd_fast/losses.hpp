// Per-sample losses and their derivatives with respect to the network's output (DESIGN 1).
#pragma once

#include <cmath>
#include <cstdint>

#include "nfd_fast/config.hpp"

namespace nfd_fast {

#define NFD_FAST_LOSSES(X) \
    X(mse)                 \
    X(cross_entropy)

enum class Loss : int {
#define NFD_FAST_LOSS_ENUMERATOR(name) name,
    NFD_FAST_LOSSES(NFD_FAST_LOSS_ENUMERATOR)
#undef NFD_FAST_LOSS_ENUMERATOR
};

inline namespace NFD_FAST_TARGET {

// 1/2 sum_c (f_c - y_c)^2 and chi_c = f_c - y_c.
NFD_FAST_HD inline double mse(const double* outputs, const double* targets, std::int64_t count,
                              double* chi) {
    double sum = 0;
    for (std::int64_t c = 0; c < count; ++c) {
        chi[c] = outputs[c] - targets[c];
        sum += chi[c] * chi[c];
    }
    return 0.5 * sum;
}

// -log softmax(f)_label and chi = softmax(f) - onehot(label). Shifted by the largest output, so
// that no finite outputs overflow.
NFD_FAST_HD inline double cross_entropy(const double* outputs, std::int64_t label,
                                        std::int64_t count, double* chi) {
    double largest = outputs[0];
    for (std::int64_t c = 1; c < count; ++c) {
        largest = outputs[c] > largest ? outputs[c] : largest;
    }
    double sum = 0;
    for (std::int64_t c = 0; c < count; ++c) {
        chi[c] = ::exp(outputs[c] - largest);
        sum += chi[c];
    }
    for (std::int64_t c = 0; c < count; ++c) chi[c] /= sum;
    chi[label] -= 1;
    return ::log(sum) - (outputs[label] - largest);
}

}  // namespace NFD_FAST_TARGET
}  // namespace nfd_fast
