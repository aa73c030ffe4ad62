// Every thread of a launch is a fiber of the calling thread; they take turns where they wait for
// each other, in a fixed order.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "cuda/emulation_language.hpp"

namespace nfd_fast::cuda::emulation {

constexpr int kResidentBlocks = 12;
constexpr std::int64_t kSharedBytes = 100000;
constexpr int kWarp = 32;

struct Warp {
    std::uint64_t exchange[kWarp];
    int size = 0, arrived = 0;
    unsigned turn = 0;
};

struct Block {
    dim3 index;
    std::vector<unsigned char> shared;
    std::vector<Warp> warps;
    int size = 0, arrived = 0;
    unsigned turn = 0;
};

// A copy on the way: it takes place when somebody waits for it, so that its target is of no use
// before.
struct Copy {
    void* to;
    const void* from;
    int bytes;
    unsigned char begun[16];  // what was there at the beginning, and must be in the end
};

struct Fiber {
    dim3 thread;
    int rank = 0;
    Block* block = nullptr;
    bool done = false, started = false;
    ucontext_t start;
    jmp_buf at;
    std::unique_ptr<char[]> stack;
    std::vector<Copy> open;                // not yet in a group
    std::deque<std::vector<Copy>> groups;  // on the way
};

// One launch at a time, on one thread.
struct Machine {
    dim3 grid, threads;
    std::vector<std::unique_ptr<Fiber>> fibers;  // kept for the next launch: stacks are dear
    std::size_t used = 0;
    Fiber* now = nullptr;
    jmp_buf home;
    ucontext_t home_context;
    const std::function<void()>* kernel = nullptr;
};

inline Machine& machine() {
    static thread_local Machine m;
    return m;
}

inline void yield() {
    Machine& m = machine();
    if (_setjmp(m.now->at) == 0) _longjmp(m.home, 1);
}

inline void enter() {
    Machine& m = machine();
    (*m.kernel)();
    machine().now->done = true;
    _longjmp(machine().home, 1);
}

inline void turn_to(Fiber& fiber) {
    Machine& m = machine();
    m.now = &fiber;
    if (_setjmp(m.home) != 0) return;
    if (fiber.started) _longjmp(fiber.at, 1);
    fiber.started = true;
    setcontext(&fiber.start);
}

inline void run_blocks(Machine& m, std::vector<std::unique_ptr<Block>>& blocks) {
    constexpr std::size_t stack_bytes = std::size_t{1} << 17;
    const int size = static_cast<int>(m.threads.x * m.threads.y * m.threads.z);
    m.used = 0;
    for (auto& block : blocks) {
        block->size = size;
        block->warps.resize(static_cast<std::size_t>((size + kWarp - 1) / kWarp));
        for (int rank = 0; rank < size; ++rank) {
            if (m.used == m.fibers.size()) {
                m.fibers.push_back(std::make_unique<Fiber>());
                m.fibers.back()->stack.reset(new char[stack_bytes]);
            }
            Fiber& fiber = *m.fibers[m.used++];
            const auto at = static_cast<unsigned>(rank);
            fiber.thread = dim3(at % m.threads.x, at / m.threads.x % m.threads.y,
                                at / (m.threads.x * m.threads.y));
            fiber.rank = rank;
            fiber.block = block.get();
            fiber.done = fiber.started = false;
            fiber.open.clear();
            fiber.groups.clear();
            block->warps[static_cast<std::size_t>(rank / kWarp)].size++;
            getcontext(&fiber.start);
            fiber.start.uc_stack.ss_sp = fiber.stack.get();
            fiber.start.uc_stack.ss_size = stack_bytes;
            fiber.start.uc_link = nullptr;
            makecontext(&fiber.start, reinterpret_cast<void (*)()>(enter), 0);
        }
    }
    for (std::size_t left = m.used; left > 0;) {
        for (std::size_t i = 0; i < m.used; ++i) {
            Fiber& fiber = *m.fibers[i];
            if (fiber.done) continue;
            turn_to(fiber);
            if (m.fibers[i]->done) --left;
        }
    }
}

inline void run(dim3 grid, dim3 threads, std::size_t shared_bytes, bool together,
                const std::function<void()>& kernel) {
    Machine& m = machine();
    m.grid = grid;
    m.threads = threads;
    m.kernel = &kernel;
    std::vector<std::unique_ptr<Block>> blocks;
    for (unsigned z = 0; z < grid.z; ++z) {
        for (unsigned y = 0; y < grid.y; ++y) {
            for (unsigned x = 0; x < grid.x; ++x) {
                blocks.push_back(std::make_unique<Block>());
                blocks.back()->index = dim3(x, y, z);
                // What nobody has written is not zero there either.
                blocks.back()->shared.assign(shared_bytes, 0xA5);
                if (together) continue;
                run_blocks(m, blocks);
                blocks.clear();
            }
        }
    }
    if (together) run_blocks(m, blocks);
}

inline unsigned char* shared_bytes() { return machine().now->block->shared.data(); }

inline void copy_ahead(void* to, const void* from, int bytes) {
    Copy copy{to, from, bytes, {}};
    std::memcpy(copy.begun, from, static_cast<std::size_t>(bytes));
    std::memset(to, 0xFF, static_cast<std::size_t>(bytes));
    machine().now->open.push_back(copy);
}
inline void close_copies() {
    Fiber& fiber = *machine().now;
    fiber.groups.push_back(std::move(fiber.open));
    fiber.open.clear();
}
inline void await_copies(std::size_t left) {
    Fiber& fiber = *machine().now;
    for (; fiber.groups.size() > left; fiber.groups.pop_front()) {
        for (const Copy& copy : fiber.groups.front()) {
            const auto bytes = static_cast<std::size_t>(copy.bytes);
            if (std::memcmp(copy.begun, copy.from, bytes) != 0) {
                std::fputs("a kernel changed what it was copying\n", stderr);
                std::abort();
            }
            std::memcpy(copy.to, copy.from, bytes);
        }
    }
}

// A meeting of `size` fibers.
template <class Meeting>
void meet(Meeting& meeting) {
    const unsigned turn = meeting.turn;
    if (++meeting.arrived == meeting.size) {
        meeting.arrived = 0;
        ++meeting.turn;
        return;
    }
    while (meeting.turn == turn) yield();
}

inline Warp& warp() {
    Fiber& fiber = *machine().now;
    return fiber.block->warps[static_cast<std::size_t>(fiber.rank / kWarp)];
}
inline int lane() { return machine().now->rank % kWarp; }

template <class T>
T exchange(T value, int from) {
    static_assert(sizeof(T) <= sizeof(std::uint64_t), "a lane's register");
    Warp& w = warp();
    std::memcpy(&w.exchange[lane()], &value, sizeof value);
    meet(w);
    T result;
    std::memcpy(&result, &w.exchange[from < w.size ? from : lane()], sizeof result);
    meet(w);
    return result;
}

}  // namespace nfd_fast::cuda::emulation

#define threadIdx (::nfd_fast::cuda::emulation::machine().now->thread)
#define blockIdx (::nfd_fast::cuda::emulation::machine().now->block->index)
#define blockDim (::nfd_fast::cuda::emulation::machine().threads)
#define gridDim (::nfd_fast::cuda::emulation::machine().grid)

inline void __syncthreads() {
    nfd_fast::cuda::emulation::meet(*nfd_fast::cuda::emulation::machine().now->block);
}
inline void __syncwarp(unsigned = 0xffffffffu) {
    nfd_fast::cuda::emulation::meet(nfd_fast::cuda::emulation::warp());
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return nfd_fast::cuda::emulation::exchange(value, nfd_fast::cuda::emulation::lane() ^ mask);
}
template <class T>
T atomicMin(T* to, T value) {
    const T before = *to;
    if (value < before) *to = value;
    return before;
}

namespace nfd_fast::cuda::emulation {

inline unsigned load_acquire(const unsigned* from) {
    return *static_cast<const volatile unsigned*>(from);
}
inline void add_release(unsigned* to) { ++*to; }
inline void store_release(unsigned* to, unsigned value) {
    *static_cast<volatile unsigned*>(to) = value;
}

}  // namespace nfd_fast::cuda::emulation
