// What the machine can do at most, for benchmarks/machine.py: loops that do nothing but read, copy,
// rewrite or multiply. Compiled once per instruction set, like kernels.cpp and under its rules;
// each runs in the calling thread.

#include <cstdint>
#include <cstring>

#include "bench/probe.hpp"
#include "cpu/lanes.hpp"

// probe_read_avx2 and its like.
#define NFD_FAST_JOIN_(name, target) probe_##name##_##target
#define NFD_FAST_JOIN(name, target) NFD_FAST_JOIN_(name, target)
#define NFD_FAST_PROBE_NAME(name) NFD_FAST_JOIN(name, NFD_FAST_TARGET)

namespace {

using namespace nfd_fast;

constexpr int kWidth = kPack<float>;
using P = Pack<float, kWidth>;
// Independent chains: latency times throughput of an addition is 8 on the processors known to us,
// and they leave room for the factors among 16 registers.
constexpr int kChains = 10;

}  // namespace

// Every probe takes a count that is cut to whole rounds of the chains; they return what keeps the
// work from being left out.
NFD_FAST_PROBE float NFD_FAST_PROBE_NAME(read)(const float* from, std::int64_t count) {
    P sums[kChains] = {};
    for (std::int64_t i = 0; i + kChains * kWidth <= count; i += kChains * kWidth) {
        for (int c = 0; c < kChains; ++c) sums[c] += load_pack<P>(from + i + c * kWidth);
    }
    float total = 0;
    for (int c = 0; c < kChains; ++c) total += sum_of_pack<float>(sums[c]);
    return total;
}

NFD_FAST_PROBE void NFD_FAST_PROBE_NAME(copy)(const float* from, float* to, std::int64_t count) {
    for (std::int64_t i = 0; i + kChains * kWidth <= count; i += kChains * kWidth) {
        for (int c = 0; c < kChains; ++c) {
            store_pack(load_pack<P>(from + i + c * kWidth), to + i + c * kWidth);
        }
    }
}

// Reads and writes back in place, as an update of weights does.
NFD_FAST_PROBE void NFD_FAST_PROBE_NAME(rewrite)(float* at, std::int64_t count) {
    const P one = broadcast_pack<P>(1.0f);
    for (std::int64_t i = 0; i + kChains * kWidth <= count; i += kChains * kWidth) {
        for (int c = 0; c < kChains; ++c) {
            store_pack(one - load_pack<P>(at + i + c * kWidth), at + i + c * kWidth);
        }
    }
}

// `rounds` times kChains multiply-adds of whole registers; returns the operations, two for each
// number, or less if the result was wrong: the fixed point of x / 2 + 1 / 2 is 1.
NFD_FAST_PROBE double NFD_FAST_PROBE_NAME(multiply_add)(std::int64_t rounds) {
    P values[kChains];
    for (int c = 0; c < kChains; ++c) values[c] = broadcast_pack<P>(static_cast<float>(c));
    const P half = broadcast_pack<P>(0.5f);
    for (std::int64_t round = 0; round < rounds; ++round) {
        for (int c = 0; c < kChains; ++c) values[c] = multiply_add(values[c], half, half);
    }
    float total = 0;
    for (int c = 0; c < kChains; ++c) total += sum_of_pack<float>(values[c]);
    return 2.0 * static_cast<double>(total) * static_cast<double>(rounds);
}
