#include "cpu/layers.hpp"

#include <algorithm>
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

// Whether a batch has so few columns that reading the matrices is what costs: our own products then
// read them once for all that is wanted of them.
template <class T>
bool is_thin(const LayerStack& stack) {
    return stack.batch <= kernels().of<T>().most_thin;
}

// phi of the neurons [first, first + count) of one layer, for the whole batch, in the layout that
// the products take.
template <class T>
void activate_tile(const LayerStack& stack, bool thin, const T* features, std::int64_t first,
                   std::int64_t count, T* activations) {
    const auto& vector = kernels().of<T>();
    T column[kMostTile];
    for (std::int64_t b = 0; b < stack.batch; ++b) {
        const std::int64_t at = b * stack.width + first;
        if (!thin) {
            vector.activate(stack.activation, features + at, count, activations + at);
            continue;
        }
        vector.activate(stack.activation, features + at, count, column);
        vector.pack_column(column, count, stack.batch,
                           activations + first * stack.batch + b * vector.pack);
    }
}

// Rows [first, first + count) of the product of one layer, and the skip.
template <class T>
void forward_tile(const LayerStack& stack, bool thin, const T* matrix, const T* activations,
                  const T* before, std::int64_t first, std::int64_t count, T* after) {
    const std::int64_t n = stack.width;
    if (thin) {
        kernels().of<T>().thin_forward(matrix + first * n, n, count, n, activations, stack.batch,
                                       branch_scale<T>(stack),
                                       stack.skip ? before + first : nullptr, after + first, n);
        return;
    }
    if (stack.skip) {
        for (std::int64_t b = 0; b < stack.batch; ++b) {
            std::copy_n(before + b * n + first, count, after + b * n + first);
        }
    }
    blas::multiply(Transpose::no, Transpose::yes, stack.batch, count, n, branch_scale<T>(stack),
                   activations, n, matrix + first * n, n, T(stack.skip ? 1 : 0), after + first, n);
}

// -step/sqrt(n) w_b phi(H_{l-1}[b]) of the neurons [first, first + count).
template <class T>
void weigh_tile(const LayerStack& stack, bool thin, const T* before, const HiddenUpdate<T>& update,
                std::int64_t first, std::int64_t count, T* weighted) {
    const auto& vector = kernels().of<T>();
    const double step = update.step / std::sqrt(static_cast<double>(stack.width));
    T column[kMostTile];
    for (std::int64_t b = 0; b < stack.batch; ++b) {
        T* row = thin ? column : weighted + b * count;
        vector.activate(stack.activation, before + b * stack.width + first, count, row);
        vector.scale(static_cast<T>(-step * update.sample_weights[b]), row, count, row);
        if (thin) vector.pack_column(row, count, stack.batch, weighted + b * vector.pack);
    }
}

// Columns [first, first + count) of one matrix: W -= step/sqrt(n) sum_b w_b G[b] phi(H[b])^T.
template <class T>
void update_tile(const LayerStack& stack, bool thin, bool replace, const T* adjoints,
                 const T* weighted, std::int64_t first, std::int64_t count, T* matrix) {
    const std::int64_t n = stack.width;
    if (thin) {
        for (std::int64_t i = 0; i < n && replace; ++i)
            std::fill_n(matrix + i * n + first, count, T(0));
        kernels().of<T>().thin_backward(matrix + first, n, n, count, adjoints, n, stack.batch,
                                        weighted, nullptr);
    } else {
        blas::multiply(Transpose::yes, Transpose::no, n, count, stack.batch, T(1), adjoints, n,
                       weighted, count, T(replace ? 0 : 1), matrix + first, n);
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
    const bool thin = is_thin<T>(stack);
    // phi(H_{l-1}) is read by every product of layer l while phi(H_l) is being written: two slots.
    T* slots[2] = {activations, activations + stack.batch * stack.padded_width()};
    team.for_tiles(n, stack.tile(), [&](std::int64_t first, std::int64_t count) {
        activate_tile(stack, thin, features, first, count, slots[0]);
    });
    team.sync();
    for (std::int64_t l = 1; l <= stack.depth; ++l) {
        const T* before = features + (l - 1) * stack.layer_size();
        T* after = features + l * stack.layer_size();
        team.for_tiles(n, stack.tile(), [&](std::int64_t first, std::int64_t count) {
            if (team.polls) monitor.poll();
            if (monitor.stopped()) return;
            forward_tile(stack, thin, hidden + (l - 1) * stack.matrix_size(), slots[(l - 1) % 2],
                         before, first, count, after);
            for (std::int64_t b = 0; b < stack.batch; ++b) {
                if (!vector.all_finite(after + b * n + first, count)) bad.report(l);
            }
            if (l < stack.depth) activate_tile(stack, thin, after, first, count, slots[l % 2]);
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
    const bool thin = is_thin<T>(stack);
    T* product = scratch + team.rank * 2 * stack.batch * stack.tile();
    T* weighted = product + stack.batch * stack.tile();
    for (std::int64_t l = stack.depth; l >= 1; --l) {
        const T* above = adjoints.layer(stack, l);
        T* below = adjoints.layer(stack, l - 1);
        const T* before = features + (l - 1) * stack.layer_size();
        const std::int64_t matrix = (l - 1) * stack.matrix_size();
        team.for_tiles(n, stack.tile(), [&](std::int64_t first, std::int64_t count) {
            if (team.polls) monitor.poll();
            if (monitor.stopped()) return;
            if (update.hidden) weigh_tile(stack, thin, before, update, first, count, weighted);
            if (thin) {
                // The matrix that is read moves in the same pass; without an update it is const
                // and only read.
                T* matrices = const_cast<T*>(backward_hidden) + matrix + first;
                std::fill_n(product, stack.batch * stack.tile(), T(0));
                vector.thin_backward(matrices, n, n, count, above, n, stack.batch,
                                     update.hidden ? weighted : nullptr, product);
            } else {
                blas::multiply(Transpose::no, Transpose::no, stack.batch, count, n, T(1), above, n,
                               backward_hidden + matrix + first, n, T(0), product, count);
                if (update.hidden) {
                    update_tile(stack, thin, false, above, weighted, first, count,
                                update.hidden + matrix);
                }
            }
            if (update.backward_hidden) {
                T* other = thin ? update.hidden : update.backward_hidden;
                update_tile(stack, thin, false, above, weighted, first, count, other + matrix);
            }
            for (std::int64_t b = 0; b < stack.batch; ++b) {
                const std::int64_t at = b * n + first;
                const T* row = product + b * count;
                if (thin) {
                    vector.unpack_column(product + b * vector.pack, stack.batch, count, weighted);
                    row = weighted;
                }
                vector.adjoint_step(stack.activation, stack.skip ? above + at : nullptr,
                                    before + at, row, branch_scale<T>(stack), count, below + at);
                if (const T* entering = adjoints.entering(stack, l - 1)) {
                    vector.axpy(T(1), entering + at, count, below + at);
                }
                if (!vector.all_finite(below + at, count)) bad.report(stack.depth - (l - 1));
            }
        });
        team.sync();
    }
}

template <class T>
void update_layers(const LayerStack& stack, const T* features, const T* adjoints,
                   const HiddenUpdate<T>& update, T* scratch, Monitor& monitor, Team team) {
    const bool thin = is_thin<T>(stack);
    T* weighted = scratch + team.rank * 2 * stack.batch * stack.tile();
    for (std::int64_t l = 1; l <= stack.depth; ++l) {
        team.for_tiles(stack.width, stack.tile(), [&](std::int64_t first, std::int64_t count) {
            if (team.polls) monitor.poll();
            if (monitor.stopped()) return;
            weigh_tile(stack, thin, features + (l - 1) * stack.layer_size(), update, first, count,
                       weighted);
            update_tile(stack, thin, update.replace, adjoints + l * stack.layer_size(), weighted,
                        first, count, update.hidden + (l - 1) * stack.matrix_size());
        });
    }
}

template <class T>
void run_forward(const LayerStack& stack, const T* hidden, T* features, int threads,
                 Monitor& monitor) {
    std::vector<T> activations(static_cast<std::size_t>(2 * stack.batch * stack.padded_width()));
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
