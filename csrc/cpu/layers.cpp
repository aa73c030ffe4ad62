#include "cpu/layers.hpp"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "cpu/blas.hpp"
#include "cpu/kernels.hpp"
#include "cpu/layer_products.hpp"

namespace nfd_fast {
namespace {

// Calls f(first, count) for this member's neurons of a layer, so many at a time.
template <class F>
void for_neurons(const LayerStack& stack, std::int64_t together, Team team, Monitor& monitor, F f) {
    team.for_tiles(stack.width, together, [&](std::int64_t first, std::int64_t count) {
        if (team.polls) monitor.poll();
        if (!monitor.stopped()) f(first, count);
    });
}

// Calls f(part) for this member's parts of a matrix, which follow each other: first all columns of
// a block of rows.
template <class F>
void for_parts(const LayerStack& stack, const Parts& parts, Team team, Monitor& monitor, F f) {
    team.for_tiles(parts.row_blocks * parts.column_parts, 1, [&](std::int64_t i, std::int64_t) {
        if (team.polls) monitor.poll();
        if (monitor.stopped()) return;
        const std::int64_t row = i / parts.column_parts * parts.rows;
        const std::int64_t first = i % parts.column_parts * parts.columns;
        f(Part{row, std::min(parts.rows, stack.width - row), first,
               std::min(parts.columns, stack.width - first)});
    });
}

template <class T, class Products>
void forward_with(const Products& products, const LayerStack& stack, const T* hidden, T* features,
                  FirstBadStep& bad, Monitor& monitor, Team team) {
    const auto& vector = kernels().of<T>();
    const std::int64_t n = stack.width;
    // phi(H_{l-1}) is read by every product of layer l while phi(H_l) is being written: two slots.
    for_neurons(stack, products.rows(), team, monitor, [&](std::int64_t first, std::int64_t count) {
        products.activate(0, features, first, count);
    });
    team.sync();
    for (std::int64_t l = 1; l <= stack.depth; ++l) {
        const T* matrix = hidden + (l - 1) * stack.matrix_size();
        const T* before = features + (l - 1) * stack.layer_size();
        T* after = features + l * stack.layer_size();
        const auto step = [&](std::int64_t first, std::int64_t count) {
            products.forward((l - 1) % 2, matrix, before, first, count, after);
            for (std::int64_t b = 0; b < stack.batch; ++b) {
                if (!vector.all_finite(after + b * n + first, count)) bad.report(l);
            }
            if (l < stack.depth) products.activate(l % 2, after, first, count);
        };
        for_neurons(stack, products.rows(), team, monitor, step);
        team.sync();
    }
}

template <class T, class Products>
void backward_with(const Products& products, const LayerStack& stack, const T* backward_hidden,
                   const T* features, AdjointStore<T> adjoints, const HiddenUpdate<T>& update,
                   FirstBadStep& bad, Monitor& monitor, Team team) {
    const auto& vector = kernels().of<T>();
    const std::int64_t n = stack.width;
    const Parts& parts = products.parts();
    // For the matrix above `layer`.
    const auto weigh = [&](std::int64_t layer, std::int64_t first, std::int64_t count) {
        if (!update.hidden) return;
        products.weigh(features + layer * stack.layer_size(), update, first, count);
    };
    if (parts.cut()) {
        for_neurons(
            stack, products.rows(), team, monitor,
            [&](std::int64_t first, std::int64_t count) { weigh(stack.depth - 1, first, count); });
        team.sync();
    }
    for (std::int64_t l = stack.depth; l >= 1; --l) {
        const T* above = adjoints.layer(stack, l);
        T* below = adjoints.layer(stack, l - 1);
        const T* before = features + (l - 1) * stack.layer_size();
        const std::int64_t matrix = (l - 1) * stack.matrix_size();
        // Nothing moves by adjoints that aren't finite: the weights may be the caller's. Those of
        // the layer below, which others may report meanwhile, are a later step.
        const bool moves = update.hidden && bad.step() > stack.depth - l;

        const auto multiply_and_update = [&](Part part) {
            // The matrix that is read moves in the same pass; without an update it is const and
            // only read.
            products.backward(above, part, const_cast<T*>(backward_hidden) + matrix, moves);
            // That was backward_hidden, where the network is decoupled.
            if (moves && update.backward_hidden) {
                products.update(above, part, false, update.hidden + matrix);
            }
        };
        const auto finish = [&](std::int64_t first, std::int64_t count) {
            T row[kMostTile];
            for (std::int64_t b = 0; b < stack.batch; ++b) {
                const std::int64_t at = b * n + first;
                vector.adjoint_step(stack.activation, stack.skip ? above + at : nullptr,
                                    before + at, products.product(b, first, count, row),
                                    branch_scale<T>(stack), count, below + at);
                if (const T* entering = adjoints.entering(stack, l - 1)) {
                    vector.axpy(T(1), entering + at, count, below + at);
                }
                if (!vector.all_finite(below + at, count)) bad.report(stack.depth - (l - 1));
            }
        };

        for_parts(stack, parts, team, monitor, [&](Part part) {
            if (!parts.cut()) weigh(l - 1, part.first, part.count);
            multiply_and_update(part);
            if (parts.cut()) return;
            for_runs(part.count, kMostTile,
                     [&](std::int64_t i, std::int64_t count) { finish(part.first + i, count); });
        });
        if (parts.cut()) {
            team.sync();
            for_neurons(stack, products.rows(), team, monitor,
                        [&](std::int64_t first, std::int64_t count) {
                            finish(first, count);
                            if (l > 1) weigh(l - 2, first, count);
                        });
        }
        team.sync();
    }
}

}  // namespace

template <class T>
double scratch_size(const LayerStack& stack, int members) {
    return with_products<T>(stack, [&](auto* products) {
        return std::remove_pointer_t<decltype(products)>::scratch_size(stack, members);
    });
}

template <class T>
bool takes_columns(const LayerStack& stack) {
    return with_products<T>(stack, [](auto* products) {
        return std::is_same_v<decltype(products), BlockedProducts<T>*>;
    });
}

template <class T>
void forward_layers(const LayerStack& stack, const T* hidden, T* features, T* scratch,
                    FirstBadStep& bad, Monitor& monitor, Team team) {
    with_products<T>(stack, [&](auto* products) {
        const std::remove_pointer_t<decltype(products)> own(stack, scratch, team);
        forward_with(own, stack, hidden, features, bad, monitor, team);
    });
}

template <class T>
void backward_layers(const LayerStack& stack, const T* backward_hidden, const T* features,
                     AdjointStore<T> adjoints, const HiddenUpdate<T>& update, T* scratch,
                     FirstBadStep& bad, Monitor& monitor, Team team) {
    with_products<T>(stack, [&](auto* products) {
        const std::remove_pointer_t<decltype(products)> own(stack, scratch, team);
        backward_with(own, stack, backward_hidden, features, adjoints, update, bad, monitor, team);
    });
}

template <class T>
void update_layers(const LayerStack& stack, const T* features, const T* adjoints,
                   const HiddenUpdate<T>& update, T* scratch, Monitor& monitor, Team team) {
    with_products<T>(stack, [&](auto* products) {
        const std::remove_pointer_t<decltype(products)> own(stack, scratch, team);
        for (std::int64_t l = 1; l <= stack.depth; ++l) {
            const T* before = features + (l - 1) * stack.layer_size();
            if (own.parts().cut()) {
                for_neurons(stack, own.rows(), team, monitor,
                            [&](std::int64_t first, std::int64_t count) {
                                own.weigh(before, update, first, count);
                            });
                team.sync();
            }
            for_parts(stack, own.parts(), team, monitor, [&](Part part) {
                if (!own.parts().cut()) own.weigh(before, update, part.first, part.count);
                for (T* matrices : {update.hidden, update.backward_hidden}) {
                    if (!matrices) continue;
                    own.update(adjoints + l * stack.layer_size(), part, update.replace,
                               matrices + (l - 1) * stack.matrix_size());
                }
            });
            if (own.parts().cut()) team.sync();
        }
    });
}

template <class T>
void run_forward(const LayerStack& stack, const T* hidden, T* features, int threads,
                 Monitor& monitor) {
    std::vector<T> scratch(static_cast<std::size_t>(scratch_size<T>(stack, threads)));
    FirstBadStep bad;
    const blas::SingleThreaded single_threaded_blas;
    run_team(threads, [&](Team team) {
        forward_layers(stack, hidden, features, scratch.data(), bad, monitor, team);
    });
}

template <class T>
void run_backward(const LayerStack& stack, const T* backward_hidden, const T* features,
                  AdjointStore<T> adjoints, int threads, Monitor& monitor) {
    std::vector<T> scratch(static_cast<std::size_t>(scratch_size<T>(stack, threads)));
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
    std::vector<T> scratch(static_cast<std::size_t>(scratch_size<T>(stack, threads)));
    const blas::SingleThreaded single_threaded_blas;
    run_team(threads, [&](Team team) {
        update_layers(stack, features, adjoints, update, scratch.data(), monitor, team);
    });
}

#define NFD_FAST_INSTANTIATE(T)                                                                   \
    template double scratch_size<T>(const LayerStack&, int);                                      \
    template bool takes_columns<T>(const LayerStack&);                                            \
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
