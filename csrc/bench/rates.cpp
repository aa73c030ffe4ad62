// The rates of this package's own kernels on numbers in the cache, for benchmarks/machine.py:
// called over and over from here, since a call from Python takes as long as some thousand numbers.

#include <cstdint>

#include "bench/probe.hpp"
#include "cpu/kernels.hpp"
#include "nfd_fast/activations.hpp"

using namespace nfd_fast;

NFD_FAST_PROBE void probe_normals(float* out, std::int64_t count, std::int64_t rounds) {
    const NoiseAddress address = noise_address(1, Stream::spare, 1);
    for (std::int64_t round = 0; round < rounds; ++round) {
        kernels().float32.normal_neurons(address, static_cast<std::uint32_t>(round), 0, count, out);
    }
}

// Of numbers of the size of features.
NFD_FAST_PROBE void probe_activations(float* out, std::int64_t count, std::int64_t rounds) {
    probe_normals(out, count, 1);
    for (std::int64_t round = 0; round < rounds; ++round) {
        kernels().float32.activate(static_cast<int>(Activation::tanh), out, count, out);
    }
}
