// Gram matrices over neurons, in float64 whatever the state's type.
#pragma once

#include <cstdint>

#include "cpu/team.hpp"
#include "training/monitor.hpp"

namespace nfd_fast {

constexpr std::int64_t kGramNeurons = 512;

// Doubles of scratch that gram() needs.
constexpr std::int64_t gram_scratch(std::int64_t columns) { return columns * kGramNeurons; }

// out (columns, columns) = (1/width) sum_i x[a][i] x[b][i] for x (columns, width), summed over
// chunks of neurons in increasing order. With `activation` >= 0, of phi(x) instead of x.
// The calling member does it alone.
template <class T>
void gram(const T* x, std::int64_t columns, std::int64_t width, int activation, double* scratch,
          Monitor& monitor, Team team, double* out);

}  // namespace nfd_fast
