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

// How the work on a matrix is dealt: by columns, and for a thin batch also by rows.
struct Parts {
    std::int64_t columns, rows;             // of a part
    std::int64_t column_parts, row_blocks;  // how many of each there are
    bool cut;  // by other columns than tile(): who finishes a column is not who began it
};

// A pass over a matrix that does not stay in the cache is as fast as the runs of it that it reads
// are long: at n = 2048 and B = 1 runs of 1024 numbers pass 1.6 times as fast as runs of 128. So
// few columns keep as long runs as leave room in the cache for what is made of them, all alike,
// and rows are cut, where else there would be few parts for many processors.
template <class T>
Parts parts_of(const LayerStack& stack) {
    constexpr std::int64_t wide = 1024, longest = 1024, cached = 4096, enough = 32, fewest = 64;
    const std::int64_t n = stack.width, tile = stack.tile();
    const std::int64_t most = std::min(cached / std::max<std::int64_t>(stack.batch, 1), longest);
    const bool cut = is_thin<T>(stack) && n >= wide && most >= 2 * tile;
    const auto in_parts = [n](std::int64_t count) {  // whole packs, and groups of rows
        return std::max<std::int64_t>((n + count - 1) / count + 15, 16) / 16 * 16;
    };
    const std::int64_t column_parts = cut ? (n + most - 1) / most : (n + tile - 1) / tile;
    const std::int64_t columns = cut ? in_parts(column_parts) : tile;
    const std::int64_t row_blocks =
        cut ? std::min((enough + column_parts - 1) / column_parts, n / fewest) : 1;
    const std::int64_t rows = in_parts(row_blocks);
    return {columns, rows, (n + columns - 1) / columns, (n + rows - 1) / rows, cut};
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
        const T* from = before + b * stack.width + first;
        const T factor = static_cast<T>(-step * update.sample_weights[b]);
        for (std::int64_t i = 0; i < count; i += kMostTile) {
            const std::int64_t now = std::min(kMostTile, count - i);
            T* row = thin ? column : weighted + b * count + i;
            vector.activate(stack.activation, from + i, now, row);
            vector.scale(factor, row, now, row);
            if (thin) {
                vector.pack_column(row, now, stack.batch,
                                   weighted + i * stack.batch + b * vector.pack);
            }
        }
    }
}

// A part of one matrix.
struct Part {
    std::int64_t row, rows, first, count;  // its rows and columns
};

// W -= step/sqrt(n) sum_b w_b G[b] phi(H[b])^T there.
template <class T>
void update_part(const LayerStack& stack, bool thin, bool replace, const T* adjoints,
                 const T* weighted, Part part, T* matrix) {
    const std::int64_t n = stack.width;
    T* at = matrix + part.row * n + part.first;
    if (thin) {
        for (std::int64_t i = 0; i < part.rows && replace; ++i)
            std::fill_n(at + i * n, part.count, T(0));
        kernels().of<T>().thin_backward(at, n, part.rows, part.count, adjoints + part.row, n,
                                        stack.batch, weighted, nullptr);
    } else {
        blas::multiply(Transpose::yes, Transpose::no, part.rows, part.count, stack.batch, T(1),
                       adjoints + part.row, n, weighted, part.count, T(replace ? 0 : 1), at, n);
    }
}

// The products G W of one layer, as far as each block of rows gives them.
template <class T>
struct ProductStore {
    T* data;  // (row blocks, B, n); of a thin batch packed, each block padded
    std::int64_t block;

    T* of(const LayerStack& stack, const Parts& parts, Part part) const {
        return data + part.row / parts.rows * block + part.first * stack.batch;
    }
};

std::int64_t product_size(const LayerStack& stack) { return stack.batch * stack.padded_width(); }

// Calls f(part) for this member's parts of a matrix.
template <class F>
void for_parts(const LayerStack& stack, const Parts& parts, Team team, Monitor& monitor, F f) {
    team.for_tiles(parts.row_blocks * parts.column_parts, 1, [&](std::int64_t index, std::int64_t) {
        if (team.polls) monitor.poll();
        if (monitor.stopped()) return;
        const std::int64_t row = index / parts.column_parts * parts.rows;
        const std::int64_t first = index % parts.column_parts * parts.columns;
        f(Part{row, std::min(parts.rows, stack.width - row), first,
               std::min(parts.columns, stack.width - first)});
    });
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
std::int64_t scratch_size(const LayerStack& stack, int members) {
    const Parts parts = parts_of<T>(stack);
    return parts.row_blocks * product_size(stack) + members * stack.batch * parts.columns;
}

template <class T>
void backward_layers(const LayerStack& stack, const T* backward_hidden, const T* features,
                     AdjointStore<T> adjoints, const HiddenUpdate<T>& update, T* scratch,
                     FirstBadStep& bad, Monitor& monitor, Team team) {
    const auto& vector = kernels().of<T>();
    const std::int64_t n = stack.width, batch = stack.batch;
    const bool thin = is_thin<T>(stack);
    const Parts parts = parts_of<T>(stack);
    const ProductStore<T> products{scratch, product_size(stack)};
    T* weighted = scratch + parts.row_blocks * products.block + team.rank * batch * parts.columns;
    for (std::int64_t l = stack.depth; l >= 1; --l) {
        const T* above = adjoints.layer(stack, l);
        T* below = adjoints.layer(stack, l - 1);
        const T* before = features + (l - 1) * stack.layer_size();
        const std::int64_t matrix = (l - 1) * stack.matrix_size();

        const auto multiply_and_update = [&](Part part) {
            T* product = products.of(stack, parts, part);
            if (update.hidden) {
                weigh_tile(stack, thin, before, update, part.first, part.count, weighted);
            }
            if (thin) {
                // The matrix that is read moves in the same pass; without an update it is const
                // and only read.
                T* at = const_cast<T*>(backward_hidden) + matrix + part.row * n + part.first;
                std::fill_n(product, batch * ((part.count + 15) / 16 * 16), T(0));
                vector.thin_backward(at, n, part.rows, part.count, above + part.row, n, batch,
                                     update.hidden ? weighted : nullptr, product);
            } else {
                blas::multiply(Transpose::no, Transpose::no, batch, part.count, n, T(1), above, n,
                               backward_hidden + matrix + part.first, n, T(0), product, part.count);
                if (update.hidden) {
                    update_part(stack, thin, false, above, weighted, part, update.hidden + matrix);
                }
            }
            if (update.backward_hidden) {
                T* other = thin ? update.hidden : update.backward_hidden;
                update_part(stack, thin, false, above, weighted, part, other + matrix);
            }
        };
        // Adds what all blocks of rows gave to one column of the batch, in their order.
        const auto gather = [&](std::int64_t b, std::int64_t first, std::int64_t count, T* row) {
            T more[kMostTile];
            for (std::int64_t block = 0; block < parts.row_blocks; ++block) {
                vector.unpack_column(
                    products.data + block * products.block + first * batch + b * vector.pack, batch,
                    count, block == 0 ? row : more);
                if (block > 0) vector.axpy(T(1), more, count, row);
            }
        };
        const auto finish = [&](std::int64_t first, std::int64_t count) {
            T row[kMostTile];
            for (std::int64_t b = 0; b < batch; ++b) {
                const std::int64_t at = b * n + first;
                if (thin) gather(b, first, count, row);
                const T* product = thin ? row : products.data + first * batch + b * count;
                vector.adjoint_step(stack.activation, stack.skip ? above + at : nullptr,
                                    before + at, product, branch_scale<T>(stack), count,
                                    below + at);
                if (const T* entering = adjoints.entering(stack, l - 1)) {
                    vector.axpy(T(1), entering + at, count, below + at);
                }
                if (!vector.all_finite(below + at, count)) bad.report(stack.depth - (l - 1));
            }
        };

        for_parts(stack, parts, team, monitor, multiply_and_update);
        if (parts.cut) team.sync();
        team.for_tiles(n, stack.tile(), finish);
        team.sync();
    }
}

template <class T>
void update_layers(const LayerStack& stack, const T* features, const T* adjoints,
                   const HiddenUpdate<T>& update, T* scratch, Monitor& monitor, Team team) {
    const bool thin = is_thin<T>(stack);
    const Parts parts = parts_of<T>(stack);
    T* weighted = scratch + team.rank * stack.batch * parts.columns;
    for (std::int64_t l = 1; l <= stack.depth; ++l) {
        for_parts(stack, parts, team, monitor, [&](Part part) {
            weigh_tile(stack, thin, features + (l - 1) * stack.layer_size(), update, part.first,
                       part.count, weighted);
            update_part(stack, thin, update.replace, adjoints + l * stack.layer_size(), weighted,
                        part, update.hidden + (l - 1) * stack.matrix_size());
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
    template std::int64_t scratch_size<T>(const LayerStack&, int);                                \
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
