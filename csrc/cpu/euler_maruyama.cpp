#include "cpu/euler_maruyama.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include "cpu/kernels.hpp"
#include "cpu/team.hpp"

namespace nfd_fast {
namespace {

// Terms are added in groups. More columns would compete for the places that a first-level cache has
// for one neuron of arrays whose width is a power of two; with fewer the sums are read and written
// more often.
constexpr std::int64_t kColumns = 8;
// Neurons of a tile: a group of noise fills half of that cache.
template <class T>
constexpr std::int64_t kNeurons = 2048 / sizeof(T);

// (count, B) as combine() takes them.
template <class T>
std::vector<T> rounded(const double* coefficients, std::int64_t count) {
    std::vector<T> to(static_cast<std::size_t>(count));
    std::transform(coefficients, coefficients + count, to.begin(),
                   [](double value) { return static_cast<T>(value); });
    return to;
}

}  // namespace

template <class T>
void euler_maruyama_step(const EulerMaruyamaStep<T>& step, T* out, int threads, Monitor& monitor) {
    const auto& vector = kernels().of<T>();
    const std::int64_t n = step.width, batch = step.batch;
    const std::vector<T> along_images =
        rounded<T>(step.image_coefficients, step.image_count * batch);
    const std::vector<T> along_directions =
        rounded<T>(step.direction_coefficients, step.direction_count * batch);
    const std::vector<T> along_noise =
        rounded<T>(step.noise_coefficients, step.column_count * batch);
    std::vector<T> scratch(static_cast<std::size_t>(threads * kColumns * kNeurons<T>));
    run_team(threads, [&](Team team) {
        T* const noise = scratch.data() + team.rank * kColumns * kNeurons<T>;
        team.for_tiles(n, kNeurons<T>, [&](std::int64_t first, std::int64_t neurons) {
            const auto add_groups = [&](std::int64_t count, const T* coefficients, auto group_at) {
                for (std::int64_t term = 0; term < count; term += kColumns) {
                    if (team.polls) monitor.poll();
                    if (monitor.stopped()) return;
                    const std::int64_t now = std::min(kColumns, count - term);
                    const auto [columns, stride] = group_at(term, now);
                    const Terms<T> terms{columns, stride, now, coefficients + term * batch,
                                         kNeurons<T>};
                    vector.combine(&terms, 1, batch, neurons, out + first, n, out + first, n);
                }
            };
            const auto of_array = [&](const T* array) {
                return [=](std::int64_t term, std::int64_t) {
                    return std::pair(array + term * n + first, n);
                };
            };
            if (out != step.state) {
                for (std::int64_t b = 0; b < batch; ++b) {
                    std::copy_n(step.state + b * n + first, neurons, out + b * n + first);
                }
            }
            add_groups(step.image_count, along_images.data(), of_array(step.images));
            add_groups(step.direction_count, along_directions.data(), of_array(step.directions));
            add_groups(step.column_count, along_noise.data(),
                       [&](std::int64_t term, std::int64_t now) {
                           for (std::int64_t i = 0; i < now; ++i) {
                               vector.normal_neurons(step.noise, step.columns[term + i], first,
                                                     neurons, noise + i * kNeurons<T>);
                           }
                           return std::pair(static_cast<const T*>(noise), kNeurons<T>);
                       });
        });
    });
}

template void euler_maruyama_step<float>(const EulerMaruyamaStep<float>&, float*, int, Monitor&);
template void euler_maruyama_step<double>(const EulerMaruyamaStep<double>&, double*, int, Monitor&);

}  // namespace nfd_fast
