// A pass outside the hidden layers: embedding, readout, losses, and the updates of both ends.
// Everything enqueues on a stream and returns at once; sums have a fixed order.
#pragma once

#include <cstdint>

#include "cuda/network.hpp"

namespace nfd_fast::cuda {

// The numbers in Network::output_sums for each output.
std::int64_t readout_chunks(std::int64_t width);

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

}  // namespace nfd_fast::cuda
