// Every thread of a launch is a fiber *and a context of ThreadSanitizer*: a stand-in for the race
// check of CUDA's own sanitizer, which needs a GPU.
//
// Turns are taken without any synchronisation that the sanitizer sees. It sees what kernels do
// alone:
//     __syncthreads, __syncwarp    all members: release on arrival, acquire on departure
//     __shfl_xor_sync              nothing: CUDA promises no order of memory
//     load_acquire, store_release, add_release, atomicMin    atomic builtins
//     copy_ahead                   an agent of the thread, another context, reads and writes; it
//                                  knows what the thread knew when it asked, and what it has done
//                                  is known to the thread once it has waited for the group
//     a launch                     its threads know what was before, what is after knows them
// The order of turns is random, by a seed. The functions are in tests/backend/races/contexts.cpp,
// which is compiled without the sanitizer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#include "cuda/emulation_language.hpp"

namespace nfd_fast::cuda::emulation {

extern int kResidentBlocks;
extern std::int64_t kSharedBytes;
constexpr int kWarp = 32;

extern std::uint64_t schedule;  // seed of the order of turns; 0: first come, first served

const dim3& thread_index();
const dim3& block_index();
const dim3& block_dim();
const dim3& grid_dim();
unsigned char* shared_bytes();
int lane();
void yield();
void meet_block();
void meet_warp();
std::uint64_t exchange_bits(std::uint64_t bits, int from);
void copy_ahead(void* to, const void* from, int bytes);
void close_copies();
void await_copies(std::size_t left);
void run(dim3 grid, dim3 threads, std::size_t shared_bytes, bool together,
         const std::function<void()>& kernel);

}  // namespace nfd_fast::cuda::emulation

#define threadIdx (::nfd_fast::cuda::emulation::thread_index())
#define blockIdx (::nfd_fast::cuda::emulation::block_index())
#define blockDim (::nfd_fast::cuda::emulation::block_dim())
#define gridDim (::nfd_fast::cuda::emulation::grid_dim())

inline void __syncthreads() { nfd_fast::cuda::emulation::meet_block(); }
inline void __syncwarp(unsigned = 0xffffffffu) { nfd_fast::cuda::emulation::meet_warp(); }
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    static_assert(sizeof(T) <= sizeof(std::uint64_t), "a lane's register");
    std::uint64_t bits = 0;
    __builtin_memcpy(&bits, &value, sizeof value);
    bits = nfd_fast::cuda::emulation::exchange_bits(bits, nfd_fast::cuda::emulation::lane() ^ mask);
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

namespace nfd_fast::cuda::emulation {
template <std::size_t Bytes>
struct Bits;
template <>
struct Bits<4> {
    using type = std::uint32_t;
};
template <>
struct Bits<8> {
    using type = std::uint64_t;
};
// *to = f(*to), atomically; returns what was there.
template <class T, class F>
T atomically(T* to, F f) {
    using Word = typename Bits<sizeof(T)>::type;
    auto* const word = reinterpret_cast<Word*>(to);
    Word was = __atomic_load_n(word, __ATOMIC_RELAXED);
    for (;;) {
        T before;
        __builtin_memcpy(&before, &was, sizeof was);
        const T after = f(before);
        Word next;
        __builtin_memcpy(&next, &after, sizeof next);
        if (__atomic_compare_exchange_n(word, &was, next, false, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED)) {
            return before;
        }
    }
}
}  // namespace nfd_fast::cuda::emulation

template <class T>
T atomicMin(T* to, T value) {
    return nfd_fast::cuda::emulation::atomically(
        to, [=](T before) { return value < before ? value : before; });
}

namespace nfd_fast::cuda::emulation {

inline unsigned load_acquire(const unsigned* from) {
    return __atomic_load_n(from, __ATOMIC_ACQUIRE);
}
inline void add_release(unsigned* to) { __atomic_fetch_add(to, 1U, __ATOMIC_RELEASE); }
inline void store_release(unsigned* to, unsigned value) {
    __atomic_store_n(to, value, __ATOMIC_RELEASE);
}

}  // namespace nfd_fast::cuda::emulation
