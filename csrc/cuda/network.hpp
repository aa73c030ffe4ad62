// What a wave of replicas is trained with besides its hidden layers.
#pragma once

#include <cstdint>

#include "cuda/wave.hpp"
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
    double* output_sums;      // (count, B, C, chunks): see ends.hpp
    double* outputs;          // (count, B, C), in the recorded row
    double* losses;           // (count,), in the recorded row
    double* chi;              // (count, B, C) derivative of the loss of each sample
    double* sample_weights;   // (count, B) w_b
    double* gram_sums;        // see records.hpp
    int* bad_step;            // (count,), see Wave
    Divergence* divergences;  // (count,), in the recorded row
};

template <class T>
AdjointStore<T> adjoint_store(const Problem<T>& p, const Network<T>& net) {
    return {net.adjoints, p.keep_adjoints};
}
template <class T>
std::int64_t stored_adjoints(const Problem<T>& p) {
    return p.keep_adjoints ? p.stack.depth + 1 : 2;
}

}  // namespace nfd_fast::cuda
