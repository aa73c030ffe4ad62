// Replicas that a device trains at the same time, as an engine's hidden layers see them.
#pragma once

#include <cstdint>

#include "cuda/device.hpp"
#include "training/problem.hpp"

namespace nfd_fast::cuda {

// No step of a pass met a number that is not finite (see FirstBadStep of the processor).
constexpr int kNoBadStep = 0x7fffffff;

// Notes a number of this step that is not finite: x - x is 0 for those that are.
template <class T>
__device__ inline void note_unless_finite(T x, int step, int* bad_step) {
    if (!(x - x == T(0))) atomicMin(bad_step, step);
}

// Pointers are to memory of the device, with the replicas of the wave as leading axis.
template <class T>
struct Wave {
    std::int64_t first;  // replica of the problem that comes first
    int count;           // replicas in flight
    cudaStream_t stream;

    const std::uint64_t* seeds;  // (count)
    T* features;                 // (count, L+1, B, n)
    T* adjoints;                 // (count, 2 or L+1, B, n), see AdjointStore
    const T* sources;            // of a single replica, see AdjointStore; or null
    const double* weights;       // (count, B) w_b of the current batch
    // (count) steps that a pass had made, its start included, when it first met a number that was
    // not finite: by atomicMin. A pass leaves a replica alone whose entry is already set: it has
    // diverged.
    int* bad_step;
    const unsigned* halt;  // of the host: not 0 once the run is to stop; to be asked now and then

    // What a pass over the hidden layers may record, one row per replica; null where not wanted.
    double* activation_kernels;    // (count, L, B, B), forward: of phi(H_{l-1})
    double* adjoint_kernels;       // (count, L+1, B, B), backward
    double* ranks;                 // (count, L) of the pass's side
    double* coupling_per_layer;    // (count, L) of the pass's direction
    double* coupling_accumulated;  // (count)
};

}  // namespace nfd_fast::cuda
