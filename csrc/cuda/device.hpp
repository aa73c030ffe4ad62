// What the kernels and those who launch them need of CUDA, and of its stand-in.
//
// The same sources are compiled twice: by nvcc, and, with NFD_FAST_EMULATES_CUDA, by a C++ compiler
// against emulation.hpp, which runs every thread of a launch on the processor. That is slow, and
// for tests alone: the kernels' logic is then checked on machines without a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <string>

#if defined(NFD_FAST_EMULATES_CUDA)
#include "cuda/emulation.hpp"
#else
#include <cuda_runtime.h>
#endif

#include "cuda/device_error.hpp"

// Never inlined on the device: for long functions, see NFD_FAST_HD_OUTLINE.
#if defined(NFD_FAST_EMULATES_CUDA)
#define NFD_FAST_OUTLINE
#else
#define NFD_FAST_OUTLINE __noinline__
#endif

namespace nfd_fast::cuda {

inline void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // clears it, where it can be cleared
    if (status == cudaErrorMemoryAllocation) throw std::bad_alloc();
    throw DeviceError(std::string("CUDA failed in ") + what + ": " + cudaGetErrorString(status));
}

// Memory of the device; its contents are arbitrary.
struct FreeDevice {
    void operator()(unsigned char* block) const { cudaFree(block); }
};
using DeviceBlock = std::unique_ptr<unsigned char, FreeDevice>;

inline DeviceBlock take_device(double bytes) {
    if (!(bytes < 0x1p62)) throw std::bad_alloc();
    void* block = nullptr;
    check(cudaMalloc(&block, bytes < 256 ? 256 : static_cast<std::size_t>(bytes)), "cudaMalloc");
    return DeviceBlock(static_cast<unsigned char*>(block));
}

// Memory of the host that kernels read and write in place.
struct FreePinned {
    void operator()(void* block) const { cudaFreeHost(block); }
};
template <class Element>
using Pinned = std::unique_ptr<Element, FreePinned>;

template <class Element>
Pinned<Element> take_pinned(std::size_t count) {
    void* block = nullptr;
    check(cudaHostAlloc(&block, count * sizeof(Element), cudaHostAllocMapped), "cudaHostAlloc");
    return Pinned<Element>(static_cast<Element*>(block));
}

// Blocks of urgent streams come first where a multiprocessor has room.
enum class Urgency { none, urgent };

// A stream of its own, waited for and destroyed in the end.
class Stream {
  public:
    explicit Stream(Urgency urgency = Urgency::none) {
        int least = 0, greatest = 0;
        check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "a question about the device");
        check(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking,
                                           urgency == Urgency::urgent ? greatest : least),
              "a new stream");
    }
    ~Stream() {
        cudaStreamSynchronize(stream_);
        cudaStreamDestroy(stream_);
    }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;

    cudaStream_t get() const { return stream_; }
    void wait() const { check(cudaStreamSynchronize(stream_), "a kernel"); }
    // Whether everything in it is done.
    bool done() const {
        const cudaError_t status = cudaStreamQuery(stream_);
        if (status == cudaErrorNotReady) {
            cudaGetLastError();
            return false;
        }
        check(status, "a kernel");
        return true;
    }

  private:
    cudaStream_t stream_ = nullptr;
};

// A point in a stream that the host can ask about, and other streams can wait for.
class Event {
  public:
    explicit Event(bool timed = false) {
        check(cudaEventCreateWithFlags(&event_, timed ? cudaEventDefault : cudaEventDisableTiming),
              "a new event");
    }
    ~Event() { cudaEventDestroy(event_); }
    Event(const Event&) = delete;
    Event& operator=(const Event&) = delete;

    void record(cudaStream_t stream) { check(cudaEventRecord(event_, stream), "an event"); }
    // What the stream is given from now on comes after it.
    void hold(cudaStream_t stream) const {
        check(cudaStreamWaitEvent(stream, event_, 0), "a wait for an event");
    }
    // Whether the stream has got there.
    bool done() const {
        const cudaError_t status = cudaEventQuery(event_);
        if (status == cudaErrorNotReady) {
            cudaGetLastError();
            return false;
        }
        check(status, "a kernel");
        return true;
    }
    // Waits for the stream to get to a later one; both are timed.
    double milliseconds_to(const Event& later) const {
        float found = 0;
        check(cudaEventSynchronize(later.event_), "a kernel");
        check(cudaEventElapsedTime(&found, event_, later.event_), "a measurement");
        return found;
    }

  private:
    cudaEvent_t event_ = nullptr;
};

// How long the device is at work on something in a stream, by its own clock.
class Stopwatch {
  public:
    // `work` enqueues on the stream.
    template <class Work>
    void time(cudaStream_t stream, Work work) {
        start_.record(stream);
        work();
        stop_.record(stream);
    }
    // Waits for the end of what was timed last.
    double milliseconds() const { return start_.milliseconds_to(stop_); }

  private:
    Event start_{true}, stop_{true};
};

// Starts kernel(args...). Where `together`, all blocks run at the same time (as many as
// resident_blocks() at most), so that they may wait for each other.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
            cudaStream_t stream, bool together, Arguments&&... arguments) {
#if defined(NFD_FAST_EMULATES_CUDA)
    emulation::enqueue(stream, [=] {
        emulation::run(grid, block, shared_bytes, together,
                       [&] { kernel(Parameters(arguments)...); });
    });
#else
    cudaLaunchAttribute cooperative{};
    cooperative.id = cudaLaunchAttributeCooperative;
    cooperative.val.cooperative = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = &cooperative;
    config.numAttrs = together ? 1 : 0;
    check(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), "a launch");
#endif
}

// The blocks of a kernel that fit the device at once, each with so much shared memory.
template <class... Parameters>
int resident_blocks(void (*kernel)(Parameters...), int threads, std::size_t shared_bytes) {
#if defined(NFD_FAST_EMULATES_CUDA)
    (void)kernel, (void)threads, (void)shared_bytes;
    return emulation::kResidentBlocks;
#else
    int device = 0, multiprocessors = 0, most_bytes = 0, per_multiprocessor = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    const auto ask = [&](int& answer, cudaDeviceAttr what) {
        check(cudaDeviceGetAttribute(&answer, what, device), "a question about the device");
    };
    ask(multiprocessors, cudaDevAttrMultiProcessorCount);
    ask(most_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    // Always all of it: the limit belongs to the kernel, and another thread may be about to launch
    // it for a problem that needs more than this one.
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, most_bytes),
          "a request for shared memory");
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel, threads,
                                                        shared_bytes),
          "a question about the device");
    if (per_multiprocessor < 1)
        throw DeviceError("the device is too small for a block of this pass");
    return multiprocessors * per_multiprocessor;
#endif
}

// The most shared memory of a block, where a multiprocessor is to have so many of them at once.
inline std::int64_t most_shared_bytes(int blocks) {
#if defined(NFD_FAST_EMULATES_CUDA)
    (void)blocks;
    return emulation::kSharedBytes;
#else
    int device = 0, of_block = 0, of_multiprocessor = 0, reserved = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    const auto ask = [&](int& bytes, cudaDeviceAttr what) {
        check(cudaDeviceGetAttribute(&bytes, what, device), "a question about the device");
    };
    ask(of_block, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    ask(of_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
    ask(reserved, cudaDevAttrReservedSharedMemoryPerBlock);
    const int share = (of_multiprocessor / blocks - reserved) / 16 * 16;
    return share < of_block ? share : of_block;
#endif
}

// The shared memory that a launch asked for.
template <class Element>
__device__ inline Element* shared_memory() {
#if defined(NFD_FAST_EMULATES_CUDA)
    return reinterpret_cast<Element*>(emulation::shared_bytes());
#else
    extern __shared__ __align__(16) unsigned char shared_bytes[];
    return reinterpret_cast<Element*>(shared_bytes);
#endif
}

// --- Copies into shared memory that go on while the thread does something else ---

// Begins to copy 8 or 16 bytes, aligned to as many. Nobody may change them meanwhile.
template <int Bytes>
__device__ inline void copy_ahead(void* shared, const void* from) {
    static_assert(Bytes == 8 || Bytes == 16, "what the device copies at once");
#if defined(NFD_FAST_EMULATES_CUDA)
    emulation::copy_ahead(shared, from, Bytes);
#else
    const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    if constexpr (Bytes == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(from) : "memory");
    }
#endif
}

// Makes a group of the copies that this thread has begun since the last one.
__device__ inline void close_copies() {
#if defined(NFD_FAST_EMULATES_CUDA)
    emulation::close_copies();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until no more than Groups of this thread's groups, the last ones, are on the way. What
// others have copied is there after a barrier.
template <int Groups>
__device__ inline void await_copies() {
#if defined(NFD_FAST_EMULATES_CUDA)
    emulation::await_copies(Groups);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(Groups) : "memory");
#endif
}

// In a loop that waits for another block.
__device__ inline void pause() {
#if defined(NFD_FAST_EMULATES_CUDA)
    emulation::yield();
#else
    __nanosleep(20);
#endif
}

// Reads what other blocks write meanwhile; everything written before it is then seen too.
__device__ inline unsigned load_acquire(const unsigned* from) {
#if defined(NFD_FAST_EMULATES_CUDA)
    return emulation::load_acquire(from);
#else
    unsigned value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
#endif
}

// Adds 1, and does not wait for it; everything written before it is seen by who acquires it.
__device__ inline void add_release(unsigned* to) {
#if defined(NFD_FAST_EMULATES_CUDA)
    emulation::add_release(to);
#else
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(to) : "memory");
#endif
}

// Adds in the device's memory, and does not wait for it.
__device__ inline void add_apart(double* to, double value) {
#if defined(NFD_FAST_EMULATES_CUDA)
    *to += value;
#else
    asm volatile("red.relaxed.gpu.global.add.f64 [%0], %1;" ::"l"(to), "d"(value) : "memory");
#endif
}

// Writes; everything written before it is seen by who acquires it.
__device__ inline void store_release(unsigned* to, unsigned value) {
#if defined(NFD_FAST_EMULATES_CUDA)
    emulation::store_release(to, value);
#else
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
#endif
}

}  // namespace nfd_fast::cuda
