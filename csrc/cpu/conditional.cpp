// The conditional engine: the same network in law without its matrices (DESIGN 2).
//
// What stands in their place, and what is worked out from it for one layer and one block, is in
// layer_algebra.hpp; the sweeps over the neurons are in conditional_pass.hpp.

#include <algorithm>
#include <limits>

#include "cpu/conditional_pass.hpp"
#include "cpu/conditional_scratch.hpp"
#include "cpu/euler_maruyama.hpp"
#include "cpu/replica.hpp"

namespace nfd_fast {
namespace {

template <class T>
struct ConditionalHidden : ConditionalScratch<T> {
    static constexpr bool records_kernels = true;

    // A barrier takes as long as some hundred neurons, and far longer on a busy machine: a member
    // should have a few thousand numbers to work on between two of them.
    static int most_members(const Problem<T>& p) {
        constexpr std::int64_t least = 2048;
        const std::int64_t members = p.stack.layer_size() / least;
        return static_cast<int>(
            std::clamp<std::int64_t>(members, 1, std::numeric_limits<int>::max()));
    }

    static ConditionalHidden lay_out(const Problem<T>& p, Arena& arena, int members) {
        ConditionalHidden h{};
        h.ConditionalScratch<T>::lay_out(p, arena, members);
        return h;
    }

    void initialize(const Problem<T>& p, std::int64_t, Monitor&, Team team) {
        if (team.rank == 0) this->clear(p);
    }

    void forward(const Problem<T>& p, std::int64_t replica, std::int64_t k, T* layers,
                 FirstBadStep& bad, Monitor& monitor, Team team) {
        const bool keep = k < p.updates;
        ConditionalPass<T> pass{*this, p,  replica, k,   kFeatures, keep, layers,
                                false, {}, {},      bad, monitor,   team};
        pass.run();
    }

    void backward(const Problem<T>& p, std::int64_t replica, std::int64_t k, const T* layers,
                  AdjointStore<T> adjoints, Gradient gradient, FirstBadStep& bad, Monitor& monitor,
                  Team team) {
        ConditionalPass<T> pass{
            *this, p,        replica,  k,   kAdjoints, true, const_cast<T*>(layers),
            false, adjoints, gradient, bad, monitor,   team};
        pass.run();
    }
};

// Nothing is asked again, and nothing is kept.
template <class T>
Problem<T> without_updates(const LayerStack& stack) {
    Problem<T> p{};
    p.stack = stack;
    p.decoupled = true;
    return p;
}

}  // namespace

template <class T>
double conditional_bytes(const Problem<T>& problem) {
    return engine_bytes<T, ConditionalHidden>(problem);
}

template <class T>
void train_conditional(const Problem<T>& problem, Monitor& monitor, StateStream* restore,
                       std::unique_ptr<State>* keep) {
    train_replicas<T, ConditionalHidden>(problem, monitor, restore, keep);
}

template <class T>
double euler_maruyama_bytes(const LayerStack& stack, int threads) {
    const Problem<T> p = without_updates<T>(stack);
    Arena sizes(nullptr);
    ConditionalHidden<T>::lay_out(p, sizes,
                                  std::min(threads, ConditionalHidden<T>::most_members(p)));
    return sizes.used();
}

template <class T>
std::optional<std::int64_t> run_euler_maruyama(const EulerMaruyama& run, T* features, int threads,
                                               Monitor& monitor) {
    Problem<T> p = without_updates<T>(run.stack);
    p.fine = run.fine;
    p.seeds = &run.seed;
    p.tolerance = run.tolerance;
    const int members = std::min(threads, ConditionalHidden<T>::most_members(p));
    const Block memory = take_block(euler_maruyama_bytes<T>(run.stack, threads));
    Arena arena(memory.get());
    ConditionalHidden<T> hidden = ConditionalHidden<T>::lay_out(p, arena, members);
    hidden.clear(p);
    FirstBadStep bad;
    const blas::SingleThreaded single_threaded_blas;
    run_team(members, [&](Team team) {
        ConditionalPass<T> pass{hidden,       p,  0,  0,   kFeatures, false, features,
                                run.in_place, {}, {}, bad, monitor,   team};
        pass.run();
    });
    if (!bad.found()) return std::nullopt;
    return bad.step();
}

template std::optional<std::int64_t> run_euler_maruyama(const EulerMaruyama&, float*, int,
                                                        Monitor&);
template std::optional<std::int64_t> run_euler_maruyama(const EulerMaruyama&, double*, int,
                                                        Monitor&);
template double euler_maruyama_bytes<float>(const LayerStack&, int);
template double euler_maruyama_bytes<double>(const LayerStack&, int);
template double conditional_bytes<float>(const Problem<float>&);
template double conditional_bytes<double>(const Problem<double>&);
template void train_conditional<float>(const Problem<float>&, Monitor&, StateStream*,
                                       std::unique_ptr<State>*);
template void train_conditional<double>(const Problem<double>&, Monitor&, StateStream*,
                                        std::unique_ptr<State>*);

}  // namespace nfd_fast
