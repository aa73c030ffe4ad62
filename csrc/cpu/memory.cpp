#include "cpu/memory.hpp"

#include <limits>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace nfd_fast {
namespace {

// Below this the allocator of the C library keeps memory by itself, if it isn't asked for more than
// is needed. Above, it may give it back to the system, and the next run waits for the system to
// clear it again: as long as it takes itself, where it is short.
constexpr std::size_t kSmallest = std::size_t{1} << 17;
constexpr std::align_val_t kVector{64};
// From this size on in huge pages, which the system may have back while nobody uses them.
constexpr std::size_t kHugePage = std::size_t{1} << 21;
constexpr std::size_t kPage = std::size_t{1} << 12;
// One per thread of an ensemble; more would only wait for a taker that never comes.
constexpr std::size_t kMostKept = 64;

struct Kept {
    unsigned char* block;
    std::size_t size;
};

std::mutex guard;
std::vector<Kept>& kept() {
    // Never destroyed: the process takes it all back, and threads may outlive static objects.
    static auto* blocks = new std::vector<Kept>;
    return *blocks;
}

std::size_t page(std::size_t size) { return size < kHugePage ? kPage : kHugePage; }

void release(const Kept& block) {
    ::operator delete(block.block, std::align_val_t{page(block.size)});
}

void advise([[maybe_unused]] unsigned char* block, [[maybe_unused]] std::size_t size,
            [[maybe_unused]] bool free) {
#if defined(__linux__) && defined(MADV_FREE)
    // Advice only: nothing depends on whether it is taken.
    if (size >= kHugePage) madvise(block, size, free ? MADV_FREE : MADV_HUGEPAGE);
#endif
}

}  // namespace

Block take_block(double bytes) {
    if (bytes > static_cast<double>(std::numeric_limits<std::ptrdiff_t>::max() / 2)) {
        throw std::bad_alloc();
    }
    const auto needed = static_cast<std::size_t>(bytes);
    if (needed < kSmallest) {
        return Block(static_cast<unsigned char*>(::operator new(needed, kVector)),
                     ReturnBlock{needed});
    }
    const std::size_t whole = page(needed);
    const std::size_t size = (needed + whole - 1) / whole * whole;
    const std::lock_guard<std::mutex> lock(guard);
    auto& blocks = kept();
    for (std::size_t i = 0; i < blocks.size(); ++i) {
        if (blocks[i].size == size) {
            Block block(blocks[i].block, ReturnBlock{size});
            blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(i));
            return block;
        }
    }
    // Another size is wanted now: what was kept has served.
    for (const Kept& block : blocks) release(block);
    blocks.clear();
    Block block(static_cast<unsigned char*>(::operator new(size, std::align_val_t{page(size)})),
                ReturnBlock{size});
    advise(block.get(), size, false);
    return block;
}

void ReturnBlock::operator()(unsigned char* block) const {
    if (size < kSmallest) {
        ::operator delete(block, kVector);
        return;
    }
    const std::lock_guard<std::mutex> lock(guard);
    auto& blocks = kept();
    if (blocks.size() >= kMostKept) {
        release({block, size});
        return;
    }
    advise(block, size, true);
    blocks.push_back({block, size});
}

}  // namespace nfd_fast
