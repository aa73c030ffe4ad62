// Threads of an emulated device as contexts of ThreadSanitizer: cuda/emulation_contexts.hpp.
// Compiled without the sanitizer, and with -fno-builtin, since its own memcpy is watched.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cuda/emulation_contexts.hpp"

extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_set_fiber_name(void* fiber, const char* name);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void __tsan_read_range(void* address, unsigned long bytes);
void __tsan_write_range(void* address, unsigned long bytes);
void __tsan_func_entry(void* pc);
void __tsan_func_exit();

// Saves the registers and goes on where another stack was left.
void emulation_switch(void** save, void* load);
}
asm(R"(
.text
.globl emulation_switch
.type emulation_switch,@function
emulation_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulation_switch,.-emulation_switch
)");

namespace nfd_fast::cuda::emulation {

int kResidentBlocks = 3;
std::int64_t kSharedBytes = 100000;
std::uint64_t schedule = 0;

namespace {

constexpr unsigned kNoSync = 1;
constexpr std::size_t kStack = std::size_t{1} << 18, kMostCopies = 4096, kMostGroups = 64;
constexpr std::size_t kMostFibers = 3500;  // and their agents: ThreadSanitizer has 8128 contexts

struct Fiber;

struct Meeting {
    int size = 0, arrived = 0;
    unsigned turn = 0;
    Fiber* waiting = nullptr;
    alignas(8) char sync[2][8];  // by turns: who is ahead must not be seen by who is late
};
struct Warp : Meeting {
    std::uint64_t exchange[2][kWarp];
};
struct Block : Meeting {
    dim3 index;
    unsigned char* shared = nullptr;
    std::vector<Warp> warps;
};
struct Copy {
    unsigned char* to;
    const unsigned char* from;
    int bytes;
    unsigned char begun[16];
};
struct Fiber {
    dim3 thread;
    int rank = 0;
    Block* block = nullptr;
    bool done = false;
    void* at = nullptr;
    char* stack = nullptr;
    void *context = nullptr, *agent = nullptr;
    Fiber* next = nullptr;  // in a list of those who wait
    Copy* copies = nullptr;
    std::uint64_t asked = 0, closed = 0, arrived = 0;  // copies: begun, in groups, waited for
    std::uint64_t groups = 0, groups_done = 0;
    std::uint64_t end_of[kMostGroups];
    alignas(8) char asking[8], group_sync[kMostGroups][8];
};

struct Machine {
    dim3 grid, threads;
    std::vector<Fiber*> fibers;
    std::vector<Fiber*> ready;  // a ring
    std::size_t first = 0, count = 0;
    Fiber* now = nullptr;
    void* home = nullptr;
    void* home_context = nullptr;
    const std::function<void()>* kernel = nullptr;
    std::uint64_t random = 0;
    alignas(8) char begin[8], end[8];
};
Machine the_machine;
Machine& machine() { return the_machine; }

void push(Fiber* fiber) {
    Machine& m = machine();
    m.ready[(m.first + m.count++) % m.ready.size()] = fiber;
}
Fiber* pop() {
    Machine& m = machine();
    Fiber*& front = m.ready[m.first];
    if (schedule != 0) {
        m.random ^= m.random << 13;
        m.random ^= m.random >> 7;
        m.random ^= m.random << 17;
        Fiber*& other = m.ready[(m.first + m.random % m.count) % m.ready.size()];
        Fiber* const swapped = other;
        other = front;
        front = swapped;
    }
    Fiber* const result = front;
    m.first = (m.first + 1) % m.ready.size();
    --m.count;
    return result;
}

void leave() {
    Machine& m = machine();
    Fiber& fiber = *m.now;
    __tsan_switch_to_fiber(m.home_context, kNoSync);
    emulation_switch(&fiber.at, m.home);
}

void enter() {
    Machine& m = machine();
    __tsan_acquire(m.begin);
    (*m.kernel)();
    Fiber& fiber = *m.now;
    if (fiber.asked != fiber.arrived) {
        std::fputs("EMULATION: a thread ends with copies on the way\n", stderr);
        std::abort();
    }
    fiber.done = true;
    __tsan_release(m.end);
    leave();
    std::abort();
}

void meet(Meeting& meeting, bool orders) {
    const unsigned turn = meeting.turn;
    if (orders) __tsan_release(meeting.sync[turn & 1]);
    if (++meeting.arrived == meeting.size) {
        meeting.arrived = 0;
        ++meeting.turn;
        while (meeting.waiting) {
            Fiber* const fiber = meeting.waiting;
            meeting.waiting = fiber->next;
            push(fiber);
        }
        // The last to come is not always the first to go.
        if (schedule != 0) {
            push(machine().now);
            leave();
        }
    } else {
        Fiber* const fiber = machine().now;
        fiber->next = meeting.waiting;
        meeting.waiting = fiber;
        leave();
    }
    if (orders) __tsan_acquire(meeting.sync[turn & 1]);
}

Warp& warp() {
    Fiber& fiber = *machine().now;
    return fiber.block->warps[static_cast<std::size_t>(fiber.rank / kWarp)];
}

void* take(std::size_t bytes) {
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) {
        std::perror("mmap");
        std::abort();
    }
    return at;
}

void run_blocks(std::vector<Block*>& blocks) {
    Machine& m = machine();
    const int size = static_cast<int>(m.threads.x * m.threads.y * m.threads.z);
    const std::size_t all = blocks.size() * static_cast<std::size_t>(size);
    while (m.fibers.size() < all) {
        auto* fiber = new Fiber;
        fiber->stack = static_cast<char*>(take(kStack));
        fiber->copies = static_cast<Copy*>(take(kMostCopies * sizeof(Copy)));
        fiber->context = __tsan_create_fiber(0);
        __tsan_set_fiber_name(fiber->context, "cuda thread");
        m.fibers.push_back(fiber);
    }
    if (m.ready.size() < all) m.ready.resize(all);
    m.first = m.count = 0;
    std::size_t used = 0;
    for (Block* block : blocks) {
        block->size = size;
        block->warps.resize(static_cast<std::size_t>((size + kWarp - 1) / kWarp));
        for (int rank = 0; rank < size; ++rank) {
            Fiber& fiber = *m.fibers[used++];
            const auto at = static_cast<unsigned>(rank);
            fiber.thread = dim3(at % m.threads.x, at / m.threads.x % m.threads.y,
                                at / (m.threads.x * m.threads.y));
            fiber.rank = rank;
            fiber.block = block;
            fiber.done = false;
            block->warps[static_cast<std::size_t>(rank / kWarp)].size++;
            auto* top = reinterpret_cast<std::uint64_t*>(fiber.stack + kStack);
            // The stack as after a call: 16 bytes aligned before the return address.
            *--top = 0;
            *--top = reinterpret_cast<std::uint64_t>(&enter);
            for (int i = 0; i < 6; ++i) *--top = 0;
            fiber.at = top;
            push(&fiber);
        }
    }
    __tsan_release(m.begin);  // the host, which knows nothing of other blocks of the launch yet
    for (std::size_t left = all; left > 0;) {
        if (m.count == 0) {
            std::fputs("EMULATION: all threads wait\n", stderr);
            std::abort();
        }
        Fiber* fiber = pop();
        m.now = fiber;
        __tsan_switch_to_fiber(fiber->context, kNoSync);
        emulation_switch(&m.home, fiber->at);
        if (fiber->done) --left;
    }
}

}  // namespace

const dim3& thread_index() { return machine().now->thread; }
const dim3& block_index() { return machine().now->block->index; }
const dim3& block_dim() { return machine().threads; }
const dim3& grid_dim() { return machine().grid; }
unsigned char* shared_bytes() { return machine().now->block->shared; }
int lane() { return machine().now->rank % kWarp; }
void yield() {
    push(machine().now);
    leave();
}
void meet_block() { meet(*machine().now->block, true); }
void meet_warp() { meet(warp(), true); }
std::uint64_t exchange_bits(std::uint64_t bits, int from) {
    Warp& w = warp();
    std::uint64_t* const here = w.exchange[w.turn & 1];
    here[lane()] = bits;
    const int at = from < w.size ? from : lane();
    meet(w, false);
    return here[at];
}

void copy_ahead(void* to, const void* from, int bytes) {
    Fiber& fiber = *machine().now;
    if (!fiber.agent) {
        fiber.agent = __tsan_create_fiber(0);
        __tsan_set_fiber_name(fiber.agent, "cp.async of a thread");
    }
    if (fiber.asked - fiber.arrived >= kMostCopies) {
        std::fputs("EMULATION: too many copies on the way\n", stderr);
        std::abort();
    }
    __tsan_release(fiber.asking);
    __tsan_switch_to_fiber(fiber.agent, kNoSync);
    __tsan_acquire(fiber.asking);
    __tsan_func_entry(__builtin_return_address(0));
    __tsan_read_range(const_cast<void*>(from), static_cast<unsigned long>(bytes));
    __tsan_write_range(to, static_cast<unsigned long>(bytes));
    __tsan_func_exit();
    __tsan_switch_to_fiber(fiber.context, kNoSync);
    Copy& copy = fiber.copies[fiber.asked++ % kMostCopies];
    copy.to = static_cast<unsigned char*>(to);
    copy.from = static_cast<const unsigned char*>(from);
    copy.bytes = bytes;
    for (int i = 0; i < bytes; ++i) {
        copy.begun[i] = copy.from[i];
        const_cast<volatile unsigned char*>(copy.to)[i] = 0xFF;
    }
}
void close_copies() {
    Fiber& fiber = *machine().now;
    const std::size_t slot = fiber.groups % kMostGroups;
    if (fiber.agent) {
        __tsan_switch_to_fiber(fiber.agent, kNoSync);
        __tsan_release(fiber.group_sync[slot]);
        __tsan_switch_to_fiber(fiber.context, kNoSync);
    }
    fiber.end_of[slot] = fiber.asked;
    ++fiber.groups;
    if (fiber.groups - fiber.groups_done >= kMostGroups) {
        std::fputs("EMULATION: too many groups on the way\n", stderr);
        std::abort();
    }
}
void await_copies(std::size_t left) {
    Fiber& fiber = *machine().now;
    for (; fiber.groups - fiber.groups_done > left; ++fiber.groups_done) {
        const std::size_t slot = fiber.groups_done % kMostGroups;
        for (; fiber.arrived < fiber.end_of[slot]; ++fiber.arrived) {
            const Copy& copy = fiber.copies[fiber.arrived % kMostCopies];
            for (int i = 0; i < copy.bytes; ++i) {
                if (copy.begun[i] != copy.from[i]) {
                    std::fputs("EMULATION: a kernel changed what it was copying\n", stderr);
                    std::abort();
                }
                const_cast<volatile unsigned char*>(copy.to)[i] = copy.from[i];
            }
        }
        __tsan_acquire(fiber.group_sync[slot]);
    }
}

void run(dim3 grid, dim3 threads, std::size_t shared, bool together,
         const std::function<void()>& kernel) {
    Machine& m = machine();
    m.grid = grid;
    m.threads = threads;
    m.kernel = &kernel;
    m.home_context = __tsan_get_current_fiber();
    m.random = schedule * 0x9E3779B97F4A7C15u + 1;
    const std::size_t size = threads.x * threads.y * threads.z;
    std::vector<Block*> blocks;
    std::vector<Block*> all;
    for (unsigned z = 0; z < grid.z; ++z) {
        for (unsigned y = 0; y < grid.y; ++y) {
            for (unsigned x = 0; x < grid.x; ++x) {
                auto* block = new Block;
                block->index = dim3(x, y, z);
                block->shared = static_cast<unsigned char*>(
                    std::aligned_alloc(256, (shared + 256) / 256 * 256));
                for (std::size_t i = 0; i < shared; ++i) block->shared[i] = 0xA5;
                blocks.push_back(block);
                all.push_back(block);
                if (together || (blocks.size() + 1) * size <= kMostFibers) continue;
                run_blocks(blocks);
                blocks.clear();
            }
        }
    }
    if (!blocks.empty()) run_blocks(blocks);
    __tsan_acquire(m.end);
    for (Block* block : all) {
        std::free(block->shared);
        delete block;
    }
}

}  // namespace nfd_fast::cuda::emulation
