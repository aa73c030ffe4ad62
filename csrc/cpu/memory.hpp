// Large blocks of memory that are cheap to ask for again.
#pragma once

#include <cstddef>
#include <memory>

namespace nfd_fast {

// The first touch of fresh memory costs a page fault per page, which for the widest networks is
// more than the computation. Blocks ask for huge pages, and one that is given back stays mapped for
// the next taker; on Linux its pages are marked free, so that the system may take them at any time.
struct ReturnBlock {
    std::size_t size = 0;
    void operator()(unsigned char* block) const;
};
using Block = std::unique_ptr<unsigned char, ReturnBlock>;

// At least `bytes` bytes, aligned for any vector load; the contents are arbitrary. Throws
// std::bad_alloc, also for a number of bytes that no machine has.
Block take_block(double bytes);

}  // namespace nfd_fast
