// What the engines share: embedding, readout, losses, records, and the team's decisions. An engine
// brings the hidden layers.
//
// `Hidden<T>` provides
//     static int most_members(problem)          threads that one replica keeps busy
//     static Hidden lay_out(problem, arena, members)     its arrays, cut from the arena
//     void initialize(replica, team)
//     void clear(problem), void transfer(problem, stream)               its state, see state.hpp
//     void forward(replica, k, features, bad, monitor, team)            features 1 ... L
//     void backward(replica, k, features, adjoints, gradient, bad, monitor, team)
//                                               adjoints L-1 ... 0, then the update of its weights
//     static constexpr bool records_kernels     whether it writes the activation kernels, and the
//                                               adjoint kernels of layers 1 ... L, by itself
// All members of a team call each of them; results are complete when it returns on every one.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <thread>
#include <type_traits>
#include <vector>

#include "cpu/blas.hpp"
#include "cpu/gram.hpp"
#include "cpu/kernels.hpp"
#include "cpu/layers.hpp"
#include "cpu/memory.hpp"
#include "cpu/weights.hpp"
#include "training/arena.hpp"
#include "training/problem.hpp"

namespace nfd_fast {

// Members of the team that works on one replica.
template <class T, template <class> class Hidden>
int team_size(const Problem<T>& p) {
    return p.replicas_in_parallel ? 1 : std::min(p.threads, Hidden<T>::most_members(p));
}

// All memory of one replica in flight.
template <class T, template <class> class Hidden>
struct Workspace {
    T* input;                // W_in (n, d)
    T* readout;              // (C, n)
    T* features;             // (L+1, B, n)
    T* first_features;       // the same of row 0, for the movement
    T* adjoints;             // (2 or L+1, B, n)
    T* x;                    // (B, d) of the current batch
    T* weighted_x;           // (B, d) times -step w_b
    double* outputs;         // (B, C)
    double* chi;             // (B, C) derivative of the loss of each sample
    double* sample_weights;  // (B,) w_b
    double* gram;            // (members, B * kGramNeurons)
    Hidden<T> hidden;
};

template <class T>
void take_weights(const Problem<T>& p, Arena& arena, T*& pointer, T* given, bool moves,
                  double count) {
    if (given && (p.overwrite || !(moves || p.keep_state))) {
        pointer = given;
    } else {
        arena.take(pointer, count);
    }
}

// Copies given weights to where they will be trained.
template <class T>
void load_weights(T* own, const T* given, std::int64_t count, Team team) {
    if (own == given) return;
    team.for_tiles(count, std::int64_t{1} << 16, [&](std::int64_t first, std::int64_t now) {
        std::copy_n(given + first, now, own + first);
    });
}

template <class T, template <class> class Hidden>
double lay_out(const Problem<T>& p, unsigned char* base, Workspace<T, Hidden>& w) {
    Arena arena(base);
    const double n = static_cast<double>(p.stack.width);
    const double layers = static_cast<double>(p.stack.depth);
    const double batch = static_cast<double>(p.stack.batch);
    const double inputs = static_cast<double>(p.inputs);
    const double outputs = static_cast<double>(p.outputs);
    take_weights(p, arena, w.input, p.given.input, p.train_input, n * inputs);
    take_weights(p, arena, w.readout, p.given.readout, p.train_readout, outputs * n);
    arena.take(w.features, (layers + 1) * batch * n);
    arena.take(w.first_features, p.keep_first_features ? (layers + 1) * batch * n : 0);
    arena.take(w.adjoints, (p.keep_adjoints ? layers + 1 : 2) * batch * n);
    arena.take(w.x, batch * inputs);
    arena.take(w.weighted_x, batch * inputs);
    arena.take(w.outputs, batch * outputs);
    arena.take(w.chi, batch * outputs);
    arena.take(w.sample_weights, batch);
    arena.take(w.gram, team_size<T, Hidden>(p) * static_cast<double>(gram_scratch(p.stack.batch)));
    w.hidden = Hidden<T>::lay_out(p, arena, team_size<T, Hidden>(p));
    return arena.used();
}

template <class T>
int workspaces(const Problem<T>& p) {
    return p.replicas_in_parallel ? static_cast<int>(std::min<std::int64_t>(p.threads, p.replicas))
                                  : 1;
}

template <class T, template <class> class Hidden>
double engine_bytes(const Problem<T>& problem) {
    Workspace<T, Hidden> workspace{};
    return workspaces(problem) * lay_out<T, Hidden>(problem, nullptr, workspace);
}

// One replica at a time in one workspace. Every member of the team runs train(); what one of them
// decides for all (verdict_) is written by rank 0 and read by the others only across a barrier.
template <class T, template <class> class Hidden>
class Replica {
  public:
    Replica(const Problem<T>& problem, Workspace<T, Hidden>& workspace, Monitor& monitor)
        : p_(problem), w_(workspace), monitor_(monitor) {}

    void train(std::int64_t replica, Team team) {
        if (p_.first_update == 0) initialize(replica, team);
        for (std::int64_t k = 0; k <= p_.updates; ++k) {
            forward(replica, k, team);
            if (team.rank == 0) finish_forward(replica, k, team);
            team.sync();
            if (verdict_ != Verdict::go_on) return;
            record_features(replica, k, team);
            if (k == p_.updates) break;
            backward_and_update(replica, k, team);
            if (team.rank == 0) finish_backward(replica, k);
            team.sync();
            if (verdict_ != Verdict::go_on) return;
            record_adjoints(replica, k, team);
            if (team.rank == 0) monitor_.advance();
        }
        if (team.rank == 0) monitor_.advance();
    }

  private:
    enum class Verdict { go_on, stop };
    static constexpr std::int64_t kAskEvery = 64;

    std::int64_t tile() const { return p_.stack.tile(); }
    T* features(std::int64_t l) const { return w_.features + l * p_.stack.layer_size(); }
    AdjointStore<T> adjoints() const { return {w_.adjoints, p_.keep_adjoints}; }
    bool stopped(Team team) const {
        if (team.polls) monitor_.poll();
        return monitor_.stopped();
    }
    // The same within a tile, where a sample with many outputs takes long enough to ask.
    bool stopped_in_tile(Team team) const { return p_.outputs >= kAskEvery && stopped(team); }
    double mean_over_batch() const { return 1.0 / static_cast<double>(p_.stack.batch); }

    void initialize(std::int64_t replica, Team team) {
        const std::uint64_t seed = p_.seeds[replica];
        const LayerStack& s = p_.stack;
        if (p_.given.input) {
            load_weights(w_.input, p_.given.input, s.width * p_.inputs, team);
            load_weights(w_.readout, p_.given.readout, p_.outputs * s.width, team);
        } else {
            fill_matrices(seed, Stream::input, 1, s.width, p_.inputs, 1, w_.input, monitor_, team);
            fill_vectors(seed, Stream::readout, p_.outputs, s.width, w_.readout, monitor_, team);
        }
        w_.hidden.initialize(p_, replica, monitor_, team);
        team.sync();
    }

    // H_0 = W_in x / sqrt(d), the hidden layers, f = V^T H_L / n.
    void forward(std::int64_t replica, std::int64_t k, Team team) {
        const LayerStack& s = p_.stack;
        if (team.rank == 0) {
            batch_ = k < p_.updates ? p_.batches + k * s.batch : p_.last_batch;
            bad_.reset();
            for (std::int64_t b = 0; b < s.batch; ++b) {
                std::copy_n(p_.x + batch_[b] * p_.inputs, p_.inputs, w_.x + b * p_.inputs);
            }
        }
        team.sync();
        const T scale = static_cast<T>(1 / std::sqrt(static_cast<double>(p_.inputs)));
        team.for_tiles(s.width, tile(), [&](std::int64_t first, std::int64_t count) {
            if (stopped(team)) return;
            blas::multiply(blas::Transpose::no, blas::Transpose::yes, s.batch, count, p_.inputs,
                           scale, w_.x, p_.inputs, w_.input + first * p_.inputs, p_.inputs, T(0),
                           features(0) + first, s.width);
            for (std::int64_t b = 0; b < s.batch; ++b) {
                if (!kernels().of<T>().all_finite(features(0) + b * s.width + first, count)) {
                    bad_.report(0);
                }
            }
        });
        team.sync();
        w_.hidden.forward(p_, replica, k, w_.features, bad_, monitor_, team);
        team.for_tiles(s.batch * p_.outputs, 1, [&](std::int64_t index, std::int64_t) {
            if (index % kAskEvery == 0 ? stopped(team) : monitor_.stopped()) return;
            const T* last = features(s.depth) + index / p_.outputs * s.width;
            const T* readout = w_.readout + index % p_.outputs * s.width;
            w_.outputs[index] =
                kernels().of<T>().dot(readout, last, s.width) / static_cast<double>(s.width);
        });
        team.sync();
    }

    // Losses and their derivatives; rank 0 alone.
    void finish_forward(std::int64_t replica, std::int64_t k, Team team) {
        if (monitor_.stopped()) {
            verdict_ = Verdict::stop;
            return;
        }
        if (bad_.found()) {
            diverged(replica, k, bad_.step(), Quantity::features);
            return;
        }
        const std::int64_t batch = p_.stack.batch;
        double sum = 0;
        for (std::int64_t b = 0; b < batch; ++b) {
            if (stopped_in_tile(team)) break;
            const double* f = w_.outputs + b * p_.outputs;
            double* chi = w_.chi + b * p_.outputs;
            sum += p_.loss == Loss::mse
                       ? mse(f, p_.targets + batch_[b] * p_.outputs, p_.outputs, chi)
                       : cross_entropy(f, p_.labels[batch_[b]], p_.outputs, chi);
            w_.sample_weights[b] = p_.outputs == 1 ? chi[0] : 1.0;
        }
        if (monitor_.stopped()) {
            verdict_ = Verdict::stop;
            return;
        }
        const double loss = sum * mean_over_batch();
        if (!std::isfinite(loss)) {
            diverged(replica, k, p_.stack.depth + 1, Quantity::outputs);
            return;
        }
        const std::int64_t row = replica * (p_.updates + 1) + k;
        if (p_.records.losses) p_.records.losses[row] = loss;
        if (p_.records.outputs) {
            std::copy_n(w_.outputs, batch * p_.outputs,
                        p_.records.outputs + row * batch * p_.outputs);
        }
    }

    void backward_and_update(std::int64_t replica, std::int64_t k, Team team) {
        const LayerStack& s = p_.stack;
        const auto& vector = kernels().of<T>();
        T* last = adjoints().layer(s, s.depth);
        // G_L = V seed: the readout vector itself for one output, V chi for several.
        team.for_tiles(s.width, tile(), [&](std::int64_t first, std::int64_t count) {
            for (std::int64_t b = 0; b < s.batch; ++b) {
                if (stopped_in_tile(team)) return;
                T* row = last + b * s.width + first;
                for (std::int64_t c = 0; c < p_.outputs; ++c) {
                    const T seed =
                        p_.outputs == 1 ? T(1) : static_cast<T>(w_.chi[b * p_.outputs + c]);
                    const T* readout = w_.readout + c * s.width + first;
                    if (c == 0) {
                        vector.scale(seed, readout, count, row);
                    } else {
                        vector.axpy(seed, readout, count, row);
                    }
                }
                if (!vector.all_finite(row, count)) bad_.report(0);
            }
        });
        if (team.rank == 0) weigh_inputs();
        team.sync();

        const Gradient gradient{
            w_.sample_weights,
            p_.train_hidden ? p_.learning_rate * s.branch_factor * mean_over_batch() : 0.0};
        w_.hidden.backward(p_, replica, k, w_.features, adjoints(), gradient, bad_, monitor_, team);

        // W_in -= eta m/sqrt(d) sum_b w_b G_0[b] x_b^T and V -= eta m sum_b H_L[b] chi_b^T. Nothing
        // moves by adjoints that aren't finite: the weights may be the caller's.
        team.for_tiles(s.width, tile(), [&](std::int64_t first, std::int64_t count) {
            if (stopped(team) || bad_.found()) return;
            if (p_.train_input) {
                blas::multiply(blas::Transpose::yes, blas::Transpose::no, count, p_.inputs, s.batch,
                               T(1), adjoints().layer(s, 0) + first, s.width, w_.weighted_x,
                               p_.inputs, T(1), w_.input + first * p_.inputs, p_.inputs);
            }
            if (!p_.train_readout) return;
            for (std::int64_t b = 0; b < s.batch; ++b) {
                if (stopped_in_tile(team)) return;
                for (std::int64_t c = 0; c < p_.outputs; ++c) {
                    const double step =
                        p_.learning_rate * mean_over_batch() * w_.chi[b * p_.outputs + c];
                    vector.axpy(static_cast<T>(-step), features(s.depth) + b * s.width + first,
                                count, w_.readout + c * s.width + first);
                }
            }
        });
        team.sync();
    }

    void weigh_inputs() {
        const double step =
            p_.learning_rate * mean_over_batch() / std::sqrt(static_cast<double>(p_.inputs));
        for (std::int64_t b = 0; b < p_.stack.batch; ++b) {
            kernels().of<T>().scale(static_cast<T>(-step * w_.sample_weights[b]),
                                    w_.x + b * p_.inputs, p_.inputs, w_.weighted_x + b * p_.inputs);
        }
    }

    void finish_backward(std::int64_t replica, std::int64_t k) {
        if (monitor_.stopped()) {
            verdict_ = Verdict::stop;
        } else if (bad_.found()) {
            diverged(replica, k, p_.stack.depth - bad_.step(), Quantity::adjoints);
        }
    }

    void diverged(std::int64_t replica, std::int64_t update, std::int64_t layer,
                  Quantity quantity) {
        p_.divergences[replica] = {update, layer, quantity};
        verdict_ = Verdict::stop;
        monitor_.advance(p_.updates + 1 - update);
    }

    double* recorded(double* states, std::int64_t row, std::int64_t layer) const {
        const std::int64_t layers = p_.stack.depth / p_.record_every + 1;
        return states + (row * layers + layer / p_.record_every) * p_.stack.layer_size();
    }

    void record_features(std::int64_t replica, std::int64_t k, Team team) {
        const LayerStack& s = p_.stack;
        const std::int64_t layers = s.depth + 1;
        const std::int64_t row = replica * (p_.updates + 1) + k;
        const std::int64_t square = s.batch * s.batch;
        double* scratch = w_.gram + team.rank * gram_scratch(s.batch);
        team.for_tiles(layers, 1, [&](std::int64_t l, std::int64_t) {
            if (stopped(team)) return;
            if (p_.records.features && l % p_.record_every == 0) {
                std::copy_n(features(l), s.layer_size(), recorded(p_.records.features, row, l));
            }
            if (p_.records.feature_kernels) {
                gram(features(l), s.batch, s.width, -1, scratch, monitor_, team,
                     p_.records.feature_kernels + (row * layers + l) * square);
            }
            if (!Hidden<T>::records_kernels && p_.records.activation_kernels && l < s.depth) {
                gram(features(l), s.batch, s.width, s.activation, scratch, monitor_, team,
                     p_.records.activation_kernels + (row * s.depth + l) * square);
            }
            if (!p_.records.feature_movement) return;
            T* start = w_.first_features + l * s.layer_size();
            if (p_.first_update + k == 0) std::copy_n(features(l), s.layer_size(), start);
            if (k == p_.updates) {
                p_.records.feature_movement[replica * layers + l] =
                    kernels().of<T>().squared_distance(features(l), start, s.layer_size()) /
                    static_cast<double>(s.layer_size());
            }
        });
        team.sync();
    }

    void record_adjoints(std::int64_t replica, std::int64_t k, Team team) {
        const LayerStack& s = p_.stack;
        const std::int64_t layers = s.depth + 1;
        const std::int64_t row = replica * p_.updates + k;
        double* scratch = w_.gram + team.rank * gram_scratch(s.batch);
        // Without the others, the adjoints of layer 0 are still there.
        team.for_tiles(p_.keep_adjoints ? layers : 1, 1, [&](std::int64_t l, std::int64_t) {
            if (stopped(team)) return;
            const T* layer = adjoints().layer(s, l);
            if (p_.records.adjoints && l % p_.record_every == 0) {
                std::copy_n(layer, s.layer_size(), recorded(p_.records.adjoints, row, l));
            }
            if (p_.records.adjoint_kernels && (l == 0 || !Hidden<T>::records_kernels)) {
                gram(layer, s.batch, s.width, -1, scratch, monitor_, team,
                     p_.records.adjoint_kernels + (row * layers + l) * s.batch * s.batch);
            }
        });
        team.sync();
    }

    const Problem<T>& p_;
    Workspace<T, Hidden>& w_;
    Monitor& monitor_;
    FirstBadStep bad_;
    const std::int64_t* batch_ = nullptr;
    Verdict verdict_ = Verdict::go_on;
};

template <class T, template <class> class Hidden>
Block allocate(const Problem<T>& problem, Workspace<T, Hidden>& workspace) {
    Block memory = take_block(lay_out<T, Hidden>(problem, nullptr, workspace));
    lay_out<T, Hidden>(problem, memory.get(), workspace);
    return memory;
}

template <class T, template <class> class Hidden>
void transfer(const Problem<T>& p, Workspace<T, Hidden>& w, StateStream& stream) {
    stream.numbers("input", w.input, p.stack.width * p.inputs);
    stream.numbers("readout", w.readout, p.outputs * p.stack.width);
    if (w.first_features) {
        stream.numbers("first_features", w.first_features,
                       (p.stack.depth + 1) * p.stack.layer_size());
    }
    w.hidden.transfer(p, stream);
}

template <class T, template <class> class Hidden>
struct KeptState final : State {
    Problem<T> problem;
    Workspace<T, Hidden> workspace;
    Block block;

    void transfer(StateStream& stream) override {
        nfd_fast::transfer<T, Hidden>(problem, workspace, stream);
    }
};

template <class T, template <class> class Hidden>
void train_replicas(const Problem<T>& problem, Monitor& monitor, StateStream* restore,
                    std::unique_ptr<State>* keep) {
    const blas::SingleThreaded single_threaded_blas;
    std::vector<Workspace<T, Hidden>> workspace(static_cast<std::size_t>(workspaces(problem)));
    std::vector<Block> memory;
    for (auto& w : workspace) memory.push_back(allocate(problem, w));
    if (restore) {
        workspace[0].hidden.clear(problem);
        transfer<T, Hidden>(problem, workspace[0], *restore);
        restore->finish();
    }

    if (!problem.replicas_in_parallel) {
        for (std::int64_t r = 0; r < problem.replicas && !monitor.stopped(); ++r) {
            Replica<T, Hidden> replica(problem, workspace[0], monitor);
            run_team(team_size<T, Hidden>(problem), [&](Team team) { replica.train(r, team); });
        }
        if (problem.keep_state && !monitor.stopped()) {
            auto state = std::make_unique<KeptState<T, Hidden>>();
            state->problem = problem;
            state->workspace = workspace[0];
            state->block = std::move(memory[0]);
            *keep = std::move(state);
        }
        return;
    }
    std::atomic<std::int64_t> next{0};
    std::atomic<int> working{0};
    run_team(static_cast<int>(workspace.size()), [&](Team team) {
        working.fetch_add(1);
        for (;;) {
            const std::int64_t r = next.fetch_add(1);
            if (r >= problem.replicas || monitor.stopped()) break;
            Replica<T, Hidden> replica(problem, workspace[static_cast<std::size_t>(team.rank)],
                                       monitor);
            replica.train(r, Team{0, 1, team.polls});
        }
        working.fetch_sub(1);
        // The thread that may ask for a stop stays to ask while the others finish.
        while (team.polls && working.load() > 0 && !monitor.stopped()) {
            std::this_thread::sleep_for(std::chrono::milliseconds(20));
            monitor.poll();
        }
    });
}

}  // namespace nfd_fast
