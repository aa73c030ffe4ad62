// What a pass does outside the hidden layers: embedding, readout, losses, updates of both ends, and
// what is recorded. Everything enqueues on a stream and returns at once; sums have a fixed order.
#pragma once

#include <cstdint>

#include "cuda/wave.hpp"
#include "training/arena.hpp"
#include "training/problem.hpp"

namespace nfd_fast::cuda {

// Where a pass leaves what is recorded: one row per replica, null where not wanted. The members
// are those of Records.
using RecordedRow = Records;

// The arrays of a wave besides those of its hidden layers, all on the device. Replicas are the
// leading axis of the second half.
template <class T>
struct Network {
    T* x;                   // (S, d)
    double* targets;        // (S, C), mse
    std::int64_t* labels;   // (S,), cross entropy
    std::int64_t* batches;  // (K+1, B), the last batch included

    std::uint64_t* seeds;     // (count,)
    T* input;                 // (count, n, d)
    T* readout;               // (count, C, n)
    T* features;              // (count, L+1, B, n)
    T* first_features;        // the same of row 0, for the movement
    T* adjoints;              // (count, 2 or L+1, B, n)
    double* output_sums;      // (count, B, C, chunks): see read_out
    double* outputs;          // (count, B, C), in the recorded row
    double* losses;           // (count,), in the recorded row
    double* chi;              // (count, B, C) derivative of the loss of each sample
    double* sample_weights;   // (count, B) w_b
    double* gram_sums;        // see record_features
    int* bad_step;            // (count,), see Wave
    Divergence* divergences;  // (count,), in the recorded row
};

// Its place in an arena, for so many replicas.
template <class T>
void lay_out(const Problem<T>& problem, Arena& arena, int replicas, Network<T>& network);

// Every replica is well again.
template <class T>
void start(const Network<T>& network, int replicas, cudaStream_t stream);

// H_0 = W_in x / sqrt(d) for batch k.
template <class T>
void embed(const Problem<T>& problem, const Network<T>& network, int replicas, std::int64_t k,
           cudaStream_t stream);

// f = V^T H_L / n, losses, chi and w_b; says who has diverged on the way there.
template <class T>
void read_out(const Problem<T>& problem, const Network<T>& network, int replicas, std::int64_t k,
              cudaStream_t stream);

// G_L = V seed: the readout vector itself for one output, V chi for several.
template <class T>
void seed_adjoints(const Problem<T>& problem, const Network<T>& network, int replicas,
                   cudaStream_t stream);

// W_in -= eta m/sqrt(d) sum_b w_b G_0[b] x_b^T and V -= eta m sum_b H_L[b] chi_b^T, where they are
// trained; says who has diverged in the backward pass.
template <class T>
void update_ends(const Problem<T>& problem, const Network<T>& network, int replicas, std::int64_t k,
                 cudaStream_t stream);

// Gram matrices of the forward pass k and, in the last one, the movement. `row` has places for
// what is wanted, the activation kernels among them only if the hidden layers don't write them.
template <class T>
void record_features(const Problem<T>& problem, const Network<T>& network, const RecordedRow& row,
                     int replicas, std::int64_t k, cudaStream_t stream);

// Gram matrices of the adjoints: of layer 0 alone, where the hidden layers write the others.
template <class T>
void record_adjoints(const Problem<T>& problem, const Network<T>& network, const RecordedRow& row,
                     bool only_first, int replicas, cudaStream_t stream);

}  // namespace nfd_fast::cuda
