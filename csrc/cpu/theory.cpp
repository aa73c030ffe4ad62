#include "cpu/theory.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/kernels.hpp"
#include "cpu/team.hpp"

namespace nfd_fast {
namespace {

// The trapezoidal rule in two independent normals z, w, with u = sqrt(a) z and v = p z + q w. Its
// error falls exponentially in 1/step: as exp(-2 pi d/step) for functions analytic within d of the
// real line, where tanh, softplus and their derivatives have their first pole at pi/2 or more from
// it in u, hence d = pi/(2 sigma) in z; and as exp(-2 pi^2/(step^2 (1 + 2 sigma^2))) for gelu,
// which has none but grows along the imaginary line as a Gaussian. With steps of 0.25/sigma both
// are below 1e-15; beyond 8.6 standard deviations lies less than 1e-17 of the weight. The number of
// nodes grows with the variance; beyond the largest, and for what is not a variance, the moments
// are NaN.
constexpr double kMostVariance = 1e4;

class Quadrature {
  public:
    GaussianMoments moments(Activation activation, double a, double b, double c,
                            const Monitor& monitor) {
        if (!(a >= 0 && a <= kMostVariance && b >= 0 && b <= kMostVariance)) return {NAN, NAN};
        const double scale = std::sqrt(a), other = std::sqrt(b);
        set_nodes(std::max(scale, other));
        const double along = scale > 0 ? c / scale : 0.0;
        const double gap = b - along * along;
        // Differences of rounded numbers: below this they are nothing but rounding.
        const double across = gap > 4e-16 * b ? std::sqrt(gap) : 0.0;
        const auto count = static_cast<std::int64_t>(nodes_.size());
        const std::int64_t inner = across > 0 ? count : 1;
        evaluate(activation, count, [&](std::int64_t i) { return scale * nodes_[i]; }, outer_);
        GaussianMoments sum{0.0, 0.0};
        for (std::int64_t i = 0; i < count && !monitor.stopped(); ++i) {
            const double shift = along * nodes_[i];
            GaussianMoments line{0.0, 0.0};
            if (inner == 1) {
                evaluate(activation, 1, [&](std::int64_t) { return shift; }, inner_);
                line = {inner_.value[0], inner_.slope[0]};
            } else {
                evaluate(
                    activation, count, [&](std::int64_t j) { return shift + across * nodes_[j]; },
                    inner_);
                line = {vector_.dot(weights_.data(), inner_.value.data(), count),
                        vector_.dot(weights_.data(), inner_.slope.data(), count)};
            }
            sum.product += weights_[i] * outer_.value[i] * line.product;
            sum.slope_product += weights_[i] * outer_.slope[i] * line.slope_product;
        }
        return sum;
    }

  private:
    struct Values {
        std::vector<double> value, slope;
    };

    void set_nodes(double sigma) {
        const double step = std::min(0.5, 0.25 / std::max(sigma, 1e-300));
        if (step == step_) return;
        step_ = step;
        constexpr double range = 8.6, density = 0.39894228040143267794;
        const auto half = static_cast<std::int64_t>(std::ceil(range / step));
        nodes_.resize(static_cast<std::size_t>(2 * half + 1));
        weights_.resize(nodes_.size());
        for (std::int64_t i = -half; i <= half; ++i) {
            const double z = step * static_cast<double>(i);
            nodes_[i + half] = z;
            weights_[i + half] = step * density * std::exp(-z * z / 2);
        }
        for (Values* values : {&outer_, &inner_}) {
            values->value.resize(nodes_.size());
            values->slope.resize(nodes_.size());
        }
        points_.resize(nodes_.size());
    }

    template <class F>
    void evaluate(Activation activation, std::int64_t count, F at, Values& to) {
        for (std::int64_t i = 0; i < count; ++i) points_[i] = at(i);
        vector_.activate(static_cast<int>(activation), points_.data(), count, to.value.data());
        vector_.differentiate(static_cast<int>(activation), points_.data(), count, to.slope.data());
    }

    const VectorKernels<double>& vector_ = kernels().of<double>();
    double step_ = 0;
    std::vector<double> nodes_, weights_, points_;
    Values outer_, inner_;
};

GaussianMoments moments_of(Activation activation, double a, double b, double c,
                           Quadrature& quadrature, const Monitor& monitor) {
    if (has_closed_moments(activation)) return closed_moments(activation, a, b, c);
    return quadrature.moments(activation, a, b, c, monitor);
}

// Closed forms take less time than to wake another thread.
int team_size(Activation activation, std::int64_t pairs, int threads) {
    if (has_closed_moments(activation)) return 1;
    return static_cast<int>(std::min<std::int64_t>(threads, pairs));
}

}  // namespace

void gaussian_moments(Activation activation, std::int64_t count, const double* a, const double* b,
                      const double* c, double* product, double* slope_product, Monitor& monitor,
                      int threads) {
    const int members = team_size(activation, std::max<std::int64_t>(count, 1), threads);
    std::vector<Quadrature> quadratures(static_cast<std::size_t>(members));
    run_team(members, [&](Team team) {
        team.for_tiles(count, 1, [&](std::int64_t i, std::int64_t) {
            if (team.polls) monitor.poll();
            if (monitor.stopped()) return;
            const GaussianMoments moments =
                moments_of(activation, a[i], b[i], c[i],
                           quadratures[static_cast<std::size_t>(team.rank)], monitor);
            product[i] = moments.product;
            slope_product[i] = moments.slope_product;
        });
    });
}

void initial_kernels(const InitialKernels& k, Monitor& monitor, int threads) {
    const std::int64_t batch = k.batch, size = batch * batch;
    const int members = team_size(k.activation, batch * (batch + 1) / 2, threads);
    std::vector<Quadrature> quadratures(static_cast<std::size_t>(members));
    Agreement halt;
    // E[phi' phi'](S_{l-1}) waits in the place of G_{l-1} until the way back.
    run_team(members, [&](Team team) {
        Quadrature& quadrature = quadratures[static_cast<std::size_t>(team.rank)];
        for (std::int64_t layer = 1; layer <= k.depth; ++layer) {
            const double* before = k.features + (layer - 1) * size;
            double* after = k.features + layer * size;
            double* products = k.products + (layer - 1) * size;
            double* slopes = k.adjoints + (layer - 1) * size;
            // Pairs i <= j: two rows of the triangle, first and last, make one of the batch + 1.
            team.for_tiles(batch * (batch + 1) / 2, 1, [&](std::int64_t pair, std::int64_t) {
                if (team.polls) monitor.poll();
                if (monitor.stopped()) return;
                const std::int64_t row = pair / (batch + 1), rest = pair % (batch + 1);
                const bool first = rest < batch - row;
                const std::int64_t i = first ? row : batch - 1 - row;
                const std::int64_t j = first ? row + rest : rest - 1;
                const GaussianMoments moments =
                    moments_of(k.activation, before[i * batch + i], before[j * batch + j],
                               before[i * batch + j], quadrature, monitor);
                for (const std::int64_t at : {i * batch + j, j * batch + i}) {
                    products[at] = moments.product;
                    slopes[at] = moments.slope_product;
                    after[at] = (k.skip ? before[at] : 0.0) + k.factor * moments.product;
                }
            });
            if (halt.reach(team, layer, monitor.stopped())) return;
        }
    });
    std::fill_n(k.adjoints + k.depth * size, size, 1.0);
    for (std::int64_t layer = k.depth; layer-- > 0 && !monitor.stopped();) {
        monitor.poll();
        const double* above = k.adjoints + (layer + 1) * size;
        double* own = k.adjoints + layer * size;
        for (std::int64_t at = 0; at < size; ++at) {
            own[at] = (k.skip ? above[at] : 0.0) + k.factor * above[at] * own[at];
        }
    }
}

}  // namespace nfd_fast
