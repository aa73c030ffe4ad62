// The layout of one allocation: every array of a run has its place in it.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "nfd_fast/config.hpp"

namespace nfd_fast {

// A count as an integer. One that no memory holds is only estimated, and need not be right.
NFD_FAST_HD inline std::int64_t as_size(double count) {
    return static_cast<std::int64_t>(count < 0x1p62 ? count : 0x1p62);
}

// Cuts one allocation into arrays. With a null base it only counts, so that what is allocated and
// what is estimated can't differ.
class Arena {
  public:
    static constexpr std::size_t kAlignment = 64;

    NFD_FAST_HD explicit Arena(unsigned char* base) : base_(base) {}

    template <class Element>
    NFD_FAST_HD void take(Element*& pointer, double count) {
        pointer = base_ && count > 0
                      ? reinterpret_cast<Element*>(base_ + static_cast<std::size_t>(used_))
                      : nullptr;
        used_ += ::ceil(count * sizeof(Element) / kAlignment) * kAlignment;
    }

    NFD_FAST_HD double used() const { return used_; }

  private:
    unsigned char* base_;
    double used_ = 0;
};

}  // namespace nfd_fast
