// The dense engine: weight matrices are stored (DESIGN 1).

#include <algorithm>
#include <cmath>

#include "cpu/replica.hpp"

namespace nfd_fast {
namespace {

template <class T>
struct DenseHidden {
    static constexpr bool records_kernels = false;

    T* hidden;
    T* backward_hidden;  // of the decoupled network
    T* scratch;
    bool by_columns;  // the team works so: each member has its own scratch, all adjoints are kept

    // One without a tile of its own, or with less work in a layer than it takes to meet the
    // others, would only wait at barriers.
    static int most_members(const Problem<T>& p) {
        constexpr double least = 1 << 18;  // multiply-adds, and what reading a number costs
        const double n = static_cast<double>(p.stack.width);
        const double work = n * n * (static_cast<double>(p.stack.batch) + 3) / least;
        return static_cast<int>(std::clamp(work, 1.0, std::ceil(n / 32)));
    }

    // Members of a team on narrow layers would spend half of their time on what the others have
    // just written. Each takes some columns of the batch through all layers instead, and meets the
    // others between passes; the matrices move when all adjoints are there.
    static bool works_by_columns(const Problem<T>& p, std::int64_t members) {
        constexpr std::int64_t narrow = 256;
        const std::int64_t share = columns_of_one(p, members);
        return members > 1 && p.stack.width <= narrow && p.stack.depth >= 2 * members &&
               4 * p.stack.batch >= 3 * members * share && takes_columns<T>(p.stack);
    }

    static std::int64_t columns_of_one(const Problem<T>& p, std::int64_t members) {
        return ((p.stack.batch + members - 1) / members + 15) / 16 * 16;
    }

    static DenseHidden lay_out(const Problem<T>& p, Arena& arena, int members) {
        DenseHidden h{};
        const double n = static_cast<double>(p.stack.width);
        const double count = static_cast<double>(p.stack.depth) * n * n;
        take_weights(p, arena, h.hidden, p.given.hidden, p.train_hidden, count);
        if (p.decoupled) {
            take_weights(p, arena, h.backward_hidden, p.given.backward_hidden, p.train_hidden,
                         count);
        }
        const double scratch = scratch_size<T>(p.stack, members);
        h.by_columns = works_by_columns(p, members);
        const double one = scratch_size<T>(p.stack, 1);
        arena.take(h.scratch, h.by_columns ? members * one : scratch);
        return h;
    }

    void initialize(const Problem<T>& p, std::int64_t replica, Monitor& monitor, Team team) {
        const auto start = [&](Stream stream, T* own, const T* given) {
            if (given) {
                load_weights(own, given, p.stack.depth * p.stack.matrix_size(), team);
            } else {
                fill_matrices(p.seeds[replica], stream, p.stack.depth, p.stack.width, p.stack.width,
                              p.fine, own, monitor, team);
            }
        };
        start(Stream::hidden, hidden, p.given.hidden);
        if (p.decoupled) start(Stream::backward_hidden, backward_hidden, p.given.backward_hidden);
    }

    void clear(const Problem<T>&) {}

    void transfer(const Problem<T>& p, StateStream& stream) {
        const std::int64_t count = p.stack.depth * p.stack.matrix_size();
        stream.numbers("hidden", hidden, count);
        if (p.decoupled) stream.numbers("backward_hidden", backward_hidden, count);
    }

    void forward(const Problem<T>& p, std::int64_t, std::int64_t, T* features, FirstBadStep& bad,
                 Monitor& monitor, Team team) {
        if (!by_columns) {
            forward_layers(p.stack, hidden, features, scratch, bad, monitor, team);
            return;
        }
        for_own_columns(p, team, [&](const LayerStack& own, std::int64_t at, Team alone) {
            forward_layers(own, hidden, features + at, own_scratch(p, team), bad, monitor, alone);
        });
        team.sync();
    }

    void backward(const Problem<T>& p, std::int64_t, std::int64_t, const T* features,
                  AdjointStore<T> adjoints, Gradient gradient, FirstBadStep& bad, Monitor& monitor,
                  Team team) {
        HiddenUpdate<T> update;
        if (p.train_hidden) {
            update = {hidden, p.decoupled ? backward_hidden : nullptr, gradient.sample_weights,
                      gradient.step};
        }
        const T* matrices = p.decoupled ? backward_hidden : hidden;
        if (!by_columns) {
            backward_layers(p.stack, matrices, features, adjoints, update, scratch, bad, monitor,
                            team);
            return;
        }
        for_own_columns(p, team, [&](const LayerStack& own, std::int64_t at, Team alone) {
            const AdjointStore<T> some{adjoints.data + at, adjoints.all_layers};
            backward_layers(own, matrices, features + at, some, {}, own_scratch(p, team), bad,
                            monitor, alone);
        });
        team.sync();
        if (update.hidden && !bad.found())
            update_own_layers(p, features, adjoints.data, update, monitor, team);
        team.sync();
    }

  private:
    T* own_scratch(const Problem<T>& p, Team team) const {
        return scratch + team.rank * as_size(scratch_size<T>(p.stack, 1));
    }

    // Calls f(stack, offset, team) for this member's columns, with a team of its own.
    template <class F>
    static void for_own_columns(const Problem<T>& p, Team team, F f) {
        const std::int64_t share = columns_of_one(p, team.size);
        const std::int64_t first = std::min(p.stack.batch, team.rank * share);
        LayerStack own = p.stack;
        own.whole_batch = p.stack.batch;
        own.batch = std::min(share, p.stack.batch - first);
        if (own.batch > 0) f(own, first * own.width, Team{0, 1, team.polls});
    }

    void update_own_layers(const Problem<T>& p, const T* features, const T* adjoints,
                           const HiddenUpdate<T>& update, Monitor& monitor, Team team) const {
        const auto [first, end] = team.share_of(p.stack.depth);
        LayerStack own = p.stack;
        own.depth = end - first;
        HiddenUpdate<T> some = update;
        some.hidden += first * own.matrix_size();
        if (some.backward_hidden) some.backward_hidden += first * own.matrix_size();
        update_layers(own, features + first * own.layer_size(), adjoints + first * own.layer_size(),
                      some, own_scratch(p, team), monitor, Team{0, 1, team.polls});
    }
};

// What the engine is asked to do, and keep.
template <class T>
Problem<T> as_kept(Problem<T> problem) {
    const int members = team_size<T, DenseHidden>(problem);
    if (DenseHidden<T>::works_by_columns(problem, members)) problem.keep_adjoints = true;
    return problem;
}

}  // namespace

template <class T>
double dense_bytes(const Problem<T>& problem) {
    return engine_bytes<T, DenseHidden>(as_kept(problem));
}

template <class T>
void train_dense(const Problem<T>& problem, Monitor& monitor, StateStream* restore,
                 std::unique_ptr<State>* keep) {
    train_replicas<T, DenseHidden>(as_kept(problem), monitor, restore, keep);
}

template double dense_bytes<float>(const Problem<float>&);
template double dense_bytes<double>(const Problem<double>&);
template void train_dense<float>(const Problem<float>&, Monitor&, StateStream*,
                                 std::unique_ptr<State>*);
template void train_dense<double>(const Problem<double>&, Monitor&, StateStream*,
                                  std::unique_ptr<State>*);

}  // namespace nfd_fast
