// Initial weights from the noise contract (DESIGN 4).
#pragma once

#include <cstdint>

#include "cpu/team.hpp"
#include "nfd_fast/philox.hpp"
#include "training/monitor.hpp"

namespace nfd_fast {

// rows x columns matrices of `layers` layers, indexed [layer][neuron][column], entries N(0, 1).
// Layer l sums the fine layers (l-1) fine + 1 ... l fine in increasing order, in T, times
// fine^(-1/2).
template <class T>
void fill_matrices(std::uint64_t seed, Stream stream, std::int64_t layers, std::int64_t rows,
                   std::int64_t columns, std::int64_t fine, T* out, Monitor& monitor, Team team);

// Vectors over neurons, one per column index: out[column][neuron].
template <class T>
void fill_vectors(std::uint64_t seed, Stream stream, std::int64_t columns, std::int64_t width,
                  T* out, Monitor& monitor, Team team);

}  // namespace nfd_fast
