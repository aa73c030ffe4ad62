// The conditional representation on given arrays (DESIGN 2): one layer with what was asked before,
// and all layers of a network that was asked nothing before.
#pragma once

#include <cstdint>
#include <optional>

#include "training/euler_maruyama_step.hpp"
#include "training/layer_stack.hpp"
#include "training/monitor.hpp"

namespace nfd_fast {

// Fills out (B, n), which may be the state and must not overlap anything else. Throws
// std::bad_alloc before anything is written; stops early if the monitor says so.
template <class T>
void euler_maruyama_step(const EulerMaruyamaStep<T>& step, T* out, int threads, Monitor& monitor);

// The features of a network at its start, the conditional engine's first pass: where nothing was
// asked before, a layer adds beta Xi T to each neuron, with phi(H)^T phi(H)/n = T^T T.
struct EulerMaruyama {
    LayerStack stack;
    std::uint64_t seed;
    std::int64_t fine;  // fine noise layers per layer
    double tolerance;   // shares of a column below it are no direction
    bool in_place;      // only the last layer is wanted
};

// What the following allocates.
template <class T>
double euler_maruyama_bytes(const LayerStack& stack, int threads);

// Fills features 1 ... L from features 0, (L+1, B, n) or, in place, (B, n); sizes are at least one.
// Returns the first layer that isn't finite, if any. Throws std::bad_alloc before anything is
// written; stops early if the monitor says so.
template <class T>
std::optional<std::int64_t> run_euler_maruyama(const EulerMaruyama& run, T* features, int threads,
                                               Monitor& monitor);

}  // namespace nfd_fast
