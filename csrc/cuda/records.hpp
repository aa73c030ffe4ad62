// What is recorded of the layers of a pass. Everything enqueues on a stream and returns at once;
// sums have a fixed order.
#pragma once

#include <cstdint>

#include "cuda/network.hpp"

namespace nfd_fast::cuda {

// The matrices in Network::gram_sums for each that is recorded; none where this is 1.
std::int64_t gram_chunks(const LayerStack& stack);

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
