#include "cpu/layers.hpp"

#include <cmath>
#include <vector>

#include "cpu/blas.hpp"
#include "cpu/kernels.hpp"

namespace nfd_fast {
namespace {

using blas::Transpose;

template <class T>
T branch_scale(const LayerStack& stack) {
    return static_cast<T>(stack.branch_factor / std::sqrt(static_cast<double>(stack.width)));
}

// phi of the neurons [first, first + count) of one layer, for the whole batch.
template <class T>
void activate_tile(const LayerStack& stack, const T* features, std::int64_t first,
                   std::int64_t count, T* activations) {
    for (std::int64_t b = 0; b < stack.batch; ++b) {
        const std::int64_t at = b * stack.width + first;
        kernels().of<T>().activate(stack.activation, features + at, count, activations + at);
    }
}

// Columns [first, first + count) of one matrix: W -= step/sqrt(n) sum_b w_b G[b] phi(H[b])^T.
template <class T>
void update_tile(const LayerStack& stack, const T* features, const T* adjoints,
                 const HiddenUpdate<T>& update, std::int64_t layer, std::int64_t first,
                 std::int64_t count, T* weighted) {
    const auto& vector = kernels().of<T>();
    const double step = update.step / std::sqrt(static_cast<double>(stack.width));
    for (std::int64_t b = 0; b < stack.batch; ++b) {
        T* row = weighted + b * count;
        vector.activate(stack.activation, features + b * stack.width + first, count, row);
        vector.scale(static_cast<T>(-step * update.sample_weights[b]), row, count, row);
    }
    for (T* matrices : {update.hidden, update.backward_hidden}) {
        if (!matrices) continue;
        blas::multiply(Transpose::yes, Transpose::no, stack.width, count, stack.batch, T(1),
                       adjoints, stack.width, weighted, count, T(update.replace ? 0 : 1),
                       matrices + (layer - 1) * stack.matrix_size() + first, stack.width);
    }
}

template <class T>
std::vector<T> tile_scratch(const LayerStack& stack, int threads) {
    return std::vector<T>(static_cast<std::size_t>(2 * threads * stack.batch * stack.tile()));
}

}  // namespace

template <class T>
void forward_layers(const LayerStack& stack, const T* hidden, T* features, T* activations,
                    FirstBadStep& bad, Monitor& monitor, Team team) {
    const auto& vector = kernels().of<T>();
    const std::int64_t n = stack.width;
    // phi(H_{l-1}) is read by every product of layer l while phi(H_l) is being written: two slots.
    T* slots[2] = {activations, activations + stack.layer_size()};
    team.for_tiles(n, stack.tile(), [&](std::int64_t first, std::int64_t count) {
        activate_tile(stack, features, first, count, slots[0]);
    });
    team.sync();
    for (std::int64_t l = 1; l <= stack.depth; ++l) {
        const T* before = features + (l - 1) * stack.layer_size();
        T* after = features + l * stack.layer_size();
        team.for_tiles(n, stack.tile(), [&](std::int64_t first, std::int64_t count) {
            if (team.polls) monitor.poll();
            if (monitor.stopped()) return;
            if (stack.skip) {
                for (std::int64_t b = 0; b < stack.batch; ++b) {
                    std::copy_n(before + b * n + first, count, after + b * n + first);
                }
            }
            blas::multiply(Transpose::no, Transpose::yes, stack.batch, count, n,
                           branch_scale<T>(stack), slots[(l - 1) % 2], n,
                           hidden + (l - 1) * stack.matrix_size() + first * n, n,
                           T(stack.skip ? 1 : 0), after + first, n);
            for (std::int64_t b = 0; b < stack.batch; ++b) {
                if (!vector.all_finite(after + b * n + first, count)) bad.report(l);
            }
            if (l < stack.depth) activate_tile(stack, after, first, count, slots[l % 2]);
        });
        team.sync();
    }
}

template <class T>
void backward_layers(const LayerStack& stack, const T* backward_hidden, const T* features,
                     AdjointStore<T> adjoints, const HiddenUpdate<T>& update, T* scratch,
                     FirstBadStep& bad, Monitor& monitor, Team team) {
    const auto& vector = kernels().of<T>();
    const std::int64_t n = stack.width;
    T* product = scratch + team.rank * 2 * stack.batch * stack.tile();
    T* weighted = product + stack.batch * stack.tile();
    for (std::int64_t l = stack.depth; l >= 1; --l) {
        const T* above = adjoints.layer(stack, l);
        T* below = adjoints.layer(stack, l - 1);
        const T* before = features + (l - 1) * stack.layer_size();
        team.for_tiles(n, stack.tile(), [&](std::int64_t first, std::int64_t count) {
            if (team.polls) monitor.poll();
            if (monitor.stopped()) return;
            blas::multiply(Transpose::no, Transpose::no, stack.batch, count, n, T(1), above, n,
                           backward_hidden + (l - 1) * stack.matrix_size() + first, n, T(0),
                           product, count);
            for (std::int64_t b = 0; b < stack.batch; ++b) {
                const std::int64_t at = b * n + first;
                vector.adjoint_step(stack.activation, stack.skip ? above + at : nullptr,
                                    before + at, product + b * count, branch_scale<T>(stack), count,
                                    below + at);
                if (adjoints.sources) {
                    vector.axpy(T(1), adjoints.sources + (l - 1) * stack.layer_size() + at, count,
                                below + at);
                }
                if (!vector.all_finite(below + at, count)) bad.report(stack.depth - (l - 1));
            }
            if (update.hidden) update_tile(stack, before, above, update, l, first, count, weighted);
        });
        team.sync();
    }
}

template <class T>
void update_layers(const LayerStack& stack, const T* features, const T* adjoints,
                   const HiddenUpdate<T>& update, T* scratch, Monitor& monitor, Team team) {
    T* weighted = scratch + team.rank * 2 * stack.batch * stack.tile();
    for (std::int64_t l = 1; l <= stack.depth; ++l) {
        team.for_tiles(stack.width, stack.tile(), [&](std::int64_t first, std::int64_t count) {
            if (team.polls) monitor.poll();
            if (monitor.stopped()) return;
            update_tile(stack, features + (l - 1) * stack.layer_size(),
                        adjoints + l * stack.layer_size(), update, l, first, count, weighted);
        });
    }
}

template <class T>
void run_forward(const LayerStack& stack, const T* hidden, T* features, int threads,
                 Monitor& monitor) {
    std::vector<T> activations(static_cast<std::size_t>(2 * stack.layer_size()));
    FirstBadStep bad;
    const blas::SingleThreaded single_threaded_blas;
    run_team(threads, [&](Team team) {
        forward_layers(stack, hidden, features, activations.data(), bad, monitor, team);
    });
}

template <class T>
void run_backward(const LayerStack& stack, const T* backward_hidden, const T* features,
                  AdjointStore<T> adjoints, int threads, Monitor& monitor) {
    std::vector<T> scratch = tile_scratch<T>(stack, threads);
    FirstBadStep bad;
    const blas::SingleThreaded single_threaded_blas;
    run_team(threads, [&](Team team) {
        backward_layers(stack, backward_hidden, features, adjoints, HiddenUpdate<T>{},
                        scratch.data(), bad, monitor, team);
    });
}

template <class T>
void run_update(const LayerStack& stack, const T* features, const T* adjoints,
                const HiddenUpdate<T>& update, int threads, Monitor& monitor) {
    std::vector<T> scratch = tile_scratch<T>(stack, threads);
    const blas::SingleThreaded single_threaded_blas;
    run_team(threads, [&](Team team) {
        update_layers(stack, features, adjoints, update, scratch.data(), monitor, team);
    });
}

#define NFD_FAST_INSTANTIATE(T)                                                                   \
    template void forward_layers<T>(const LayerStack&, const T*, T*, T*, FirstBadStep&, Monitor&, \
                                    Team);                                                        \
    template void backward_layers<T>(const LayerStack&, const T*, const T*, AdjointStore<T>,      \
                                     const HiddenUpdate<T>&, T*, FirstBadStep&, Monitor&, Team);  \
    template void update_layers<T>(const LayerStack&, const T*, const T*, const HiddenUpdate<T>&, \
                                   T*, Monitor&, Team);                                           \
    template void run_forward<T>(const LayerStack&, const T*, T*, int, Monitor&);                 \
    template void run_backward<T>(const LayerStack&, const T*, const T*, AdjointStore<T>, int,    \
                                  Monitor&);                                                      \
    template void run_update<T>(const LayerStack&, const T*, const T*, const HiddenUpdate<T>&,    \
                                int, Monitor&);
NFD_FAST_INSTANTIATE(float)
NFD_FAST_INSTANTIATE(double)
#undef NFD_FAST_INSTANTIATE

}  // namespace nfd_fast
