// A training problem as the engines see it: plain sizes, switches and pointers (DESIGN 1, 5).
#pragma once

#include <cstdint>
#include <memory>

#include "nfd_fast/losses.hpp"
#include "training/layer_stack.hpp"
#include "training/monitor.hpp"
#include "training/state.hpp"

namespace nfd_fast {

// Unscaled weights: input (n, d), hidden (L, n, n) [layer][out][in], readout (C, n).
template <class T>
struct WeightArrays {
    T* input = nullptr;
    T* hidden = nullptr;
    T* readout = nullptr;
    T* backward_hidden = nullptr;  // the decoupled network's W'
};

enum class Quantity : std::int64_t { none, features, adjoints, outputs };

// Where a replica stopped being finite; `layer` is depth + 1 for the readout.
struct Divergence {
    std::int64_t update;
    std::int64_t layer;
    Quantity quantity;
};

// Where to write what is recorded: float64, a leading replica axis on each; null where not wanted.
// Rows of a replica that were not reached keep what the caller put there.
struct Records {
    double* outputs = nullptr;             // (K+1, B, C)
    double* losses = nullptr;              // (K+1,)
    double* features = nullptr;            // (K+1, L/record_every + 1, B, n)
    double* adjoints = nullptr;            // (K, L/record_every + 1, B, n)
    double* feature_kernels = nullptr;     // (K+1, L+1, B, B)
    double* activation_kernels = nullptr;  // (K+1, L, B, B) of phi(H_{l-1}), l = 1 ... L
    double* adjoint_kernels = nullptr;     // (K, L+1, B, B)
    double* feature_movement = nullptr;    // (L+1,)

    // The conditional engine's own.
    double* feature_ranks = nullptr;                  // (K, L)
    double* adjoint_ranks = nullptr;                  // (K, L)
    double* coupling_per_layer = nullptr;             // (K+1, L)
    double* coupling_accumulated = nullptr;           // (K+1,)
    double* backward_coupling_per_layer = nullptr;    // (K, L)
    double* backward_coupling_accumulated = nullptr;  // (K,)
};

template <class T>
struct Problem {
    LayerStack stack;
    std::int64_t inputs;
    std::int64_t outputs;
    Loss loss;
    double learning_rate;
    bool train_input, train_hidden, train_readout;
    bool decoupled;
    std::int64_t fine;  // fine noise layers per layer

    const T* x;                      // (S, d)
    const double* targets;           // (S, C), mse
    const std::int64_t* labels;      // (S,), cross entropy
    const std::int64_t* batches;     // (K, B) indices into S
    std::int64_t updates;            // K
    const std::int64_t* last_batch;  // (B,) of the last row: batch 0 of the run that this continues
    std::int64_t first_update;       // updates made before; 0 unless the run is continued

    const std::uint64_t* seeds;  // (replicas,)
    std::int64_t replicas;

    // Weights to start from instead of the seed's: dense engine, one replica. They are changed only
    // if `overwrite`; otherwise those that move are copied first, and all of them if the run leaves
    // a state, which is to be saved when they may have become others.
    WeightArrays<T> given;
    bool overwrite;
    bool keep_state;

    int threads;
    bool replicas_in_parallel;  // one replica per thread at a time; else all threads on each

    std::int64_t record_every;  // features and adjoints of layers 0, record_every, ... are recorded
    bool keep_adjoints;         // of all layers: needed to record them
    bool keep_first_features;   // of row 0: needed for the movement
    bool keep_coupling;         // conditional engine: needed to record the couplings
    double tolerance;           // conditional engine: shares of a column below it are no direction
    Records records;
    Divergence* divergences;  // (replicas,)
    // (K+1, 2) or null; on a device alone. What it takes for the hidden layers in each pass,
    // forward and backward, is added here.
    double* pass_milliseconds;
};

// The two engines. Each trains all replicas, with the same bits for any number of threads and
// either way to use them; throws std::bad_alloc before any work; afterwards only the monitor stops
// it early. The estimates are what it allocates, in doubles, so that no problem is too large to be
// estimated.
//
// `restore` has what a run of one replica left behind; it is read before any work and may throw.
// `keep` receives the memory of such a run, where the problem asks for it.
template <class T>
void train_dense(const Problem<T>& problem, Monitor& monitor, StateStream* restore,
                 std::unique_ptr<State>* keep);
template <class T>
double dense_bytes(const Problem<T>& problem);
template <class T>
void train_conditional(const Problem<T>& problem, Monitor& monitor, StateStream* restore,
                       std::unique_ptr<State>* keep);
template <class T>
double conditional_bytes(const Problem<T>& problem);

}  // namespace nfd_fast
