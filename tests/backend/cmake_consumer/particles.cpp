// The forward equation dh = sqrt(T) du of two samples, by particles and without any matrix.
#include <nfd_fast/nfd.h>

#include <cmath>
#include <cstdio>
#include <nfd_fast/activations.hpp>
#include <stdexcept>
#include <vector>

constexpr std::int64_t particles = 1000, depth = 8;
constexpr double horizon = 1.0;

void check(std::int32_t status) {
    if (status != NFD_SUCCESS) throw std::runtime_error(nfd_error_text(status));
}

int main() {
    std::vector<double> h(2 * particles);
    for (std::uint32_t b = 0; b < 2; ++b) {
        check(nfd_normal_f64(0, NFD_STREAM_INPUT, 1, b, 0, particles, h.data() + b * particles));
    }
    nfd_step step{};
    step.width = particles;
    step.batch = 2;
    step.column_count = 2;
    step.stream = NFD_STREAM_FORWARD_NOISE;
    const std::uint32_t columns[2] = {0, 1};
    for (step.layer = 1; step.layer <= depth; ++step.layer) {
        double k00 = 0, k01 = 0, k11 = 0;  // averages over particles of phi(h) phi(h)^T
        for (std::int64_t i = 0; i < particles; ++i) {
            const double first = nfd_fast::activation::tanh::value(h[i]);
            const double second = nfd_fast::activation::tanh::value(h[particles + i]);
            k00 += first * first / particles;
            k01 += first * second / particles;
            k11 += second * second / particles;
        }
        // Two independent columns of noise become two with these covariances.
        const double scale = std::sqrt(horizon / depth), c00 = std::sqrt(k00), c10 = k01 / c00;
        const double coefficients[2][2] = {{scale * c00, scale * c10},
                                           {0, scale * std::sqrt(k11 - c10 * c10)}};
        check(nfd_euler_maruyama_step_f64(&step, h.data(), nullptr, nullptr, nullptr, nullptr,
                                          columns, coefficients[0], h.data(), 2));
    }
    for (const double value : h) std::printf("%a\n", value);
}
