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

    // One without a tile of its own, or with less work in a layer than it takes to meet the
    // others, would only wait at barriers.
    static int most_members(const Problem<T>& p) {
        constexpr double least = 1 << 18;  // multiply-adds, and what reading a number costs
        const double n = static_cast<double>(p.stack.width);
        const double work = n * n * (static_cast<double>(p.stack.batch) + 3) / least;
        return static_cast<int>(std::clamp(work, 1.0, std::ceil(n / 32)));
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
        arena.take(h.scratch, static_cast<double>(scratch_size<T>(p.stack, members)));
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
        forward_layers(p.stack, hidden, features, scratch, bad, monitor, team);
    }

    void backward(const Problem<T>& p, std::int64_t, std::int64_t, const T* features,
                  AdjointStore<T> adjoints, Gradient gradient, FirstBadStep& bad, Monitor& monitor,
                  Team team) {
        HiddenUpdate<T> update;
        if (p.train_hidden) {
            update = {hidden, p.decoupled ? backward_hidden : nullptr, gradient.sample_weights,
                      gradient.step};
        }
        backward_layers(p.stack, p.decoupled ? backward_hidden : hidden, features, adjoints, update,
                        scratch, bad, monitor, team);
    }
};

}  // namespace

template <class T>
double dense_bytes(const Problem<T>& problem) {
    return engine_bytes<T, DenseHidden>(problem);
}

template <class T>
void train_dense(const Problem<T>& problem, Monitor& monitor, StateStream* restore,
                 std::unique_ptr<State>* keep) {
    train_replicas<T, DenseHidden>(problem, monitor, restore, keep);
}

template double dense_bytes<float>(const Problem<float>&);
template double dense_bytes<double>(const Problem<double>&);
template void train_dense<float>(const Problem<float>&, Monitor&, StateStream*,
                                 std::unique_ptr<State>*);
template void train_dense<double>(const Problem<double>&, Monitor&, StateStream*,
                                  std::unique_ptr<State>*);

}  // namespace nfd_fast
