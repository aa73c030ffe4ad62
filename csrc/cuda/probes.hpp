// What the current device can do at most, for the benchmarks: each is the best of some rounds.
#pragma once

#include <cstdint>

namespace nfd_fast::cuda {

// Bytes per second that a copy of so many moves, reading and writing counted both.
double copy_rate(std::int64_t bytes);
double write_rate(std::int64_t bytes);

// Operations per second, two for each multiply-add. `rounds` are those of every thread's loop.
template <class T>
double multiply_add_rate(int rounds);

}  // namespace nfd_fast::cuda
