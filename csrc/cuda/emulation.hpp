// CUDA on the processor, for tests: see device.hpp.
//
// Here is a run-time library with one device, whose memory is the host's. Streams run at once, but
// for those of the least priority: they put off what they are given until somebody waits for it,
// as on a device that is busy with others, so that a wait that is missing shows. Copies from and to
// memory that the library did not give are over when the call returns, as in CUDA. The threads of a
// launch are fibers of the calling thread (emulation_fibers.hpp). They take turns where they wait
// for each other, so that a run is repeatable, and there is one memory: what a kernel must not
// leave to chance is not found by them. For that each thread can be a context of ThreadSanitizer,
// which knows how they wait for each other (emulation_contexts.hpp;
// tests/backend/test_cuda_races.py).
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <iterator>
#include <map>
#include <mutex>
#include <utility>

#if defined(NFD_FAST_EMULATION_CONTEXTS)
#include "cuda/emulation_contexts.hpp"
#else
#include "cuda/emulation_fibers.hpp"
#endif

// --- The run-time library: one device, whose memory is the host's --------------------------------

enum cudaError_t {
    cudaSuccess,
    cudaErrorMemoryAllocation,
    cudaErrorNotReady,
    cudaErrorInvalidValue,
    cudaErrorNoDevice
};
enum cudaMemcpyKind {
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault
};
struct CUstream_st {
    std::deque<std::function<void()>> waiting;
    std::size_t given = 0;  // since it was made, those that are done included
};
using cudaStream_t = CUstream_st*;

namespace nfd_fast::cuda::emulation {

constexpr int kLeastPriority = 0, kGreatestPriority = -1;

// 1 and 2 are CUDA's names for default streams.
inline bool puts_off(cudaStream_t stream) { return reinterpret_cast<std::uintptr_t>(stream) > 2; }

inline void enqueue(cudaStream_t stream, std::function<void()> work) {
    if (!puts_off(stream)) return work();
    stream->waiting.push_back(std::move(work));
    ++stream->given;
}

// Does the first `count` of what a stream was ever given.
inline void catch_up(cudaStream_t stream, std::size_t count) {
    if (!puts_off(stream)) return;
    while (stream->given - stream->waiting.size() < count) {
        const std::function<void()> work = std::move(stream->waiting.front());
        stream->waiting.pop_front();
        work();
    }
}
inline void catch_up(cudaStream_t stream) {
    if (puts_off(stream)) catch_up(stream, stream->given);
}

// The memory that the library has given.
class Given {
  public:
    void add(const void* block, std::size_t bytes) {
        const std::lock_guard<std::mutex> lock(mutex_);
        sizes_[reinterpret_cast<std::uintptr_t>(block)] = bytes;
    }
    void remove(const void* block) {
        const std::lock_guard<std::mutex> lock(mutex_);
        sizes_.erase(reinterpret_cast<std::uintptr_t>(block));
    }
    bool has(const void* place) {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto at = reinterpret_cast<std::uintptr_t>(place);
        auto after = sizes_.upper_bound(at);
        return after != sizes_.begin() && at - std::prev(after)->first < std::prev(after)->second;
    }

  private:
    std::mutex mutex_;
    std::map<std::uintptr_t, std::size_t> sizes_;
};
inline Given& given() {
    static Given blocks;
    return blocks;
}

inline void enqueue_copy(cudaStream_t stream, const void* to, const void* from,
                         std::function<void()> work) {
    enqueue(stream, std::move(work));
    if (!given().has(to) || !given().has(from)) catch_up(stream);
}

}  // namespace nfd_fast::cuda::emulation

constexpr unsigned cudaStreamNonBlocking = 1, cudaHostAllocMapped = 2;

inline const char* cudaGetErrorString(cudaError_t) { return "an emulated error"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMalloc(void** block, std::size_t bytes) {
    *block = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (!*block) return cudaErrorMemoryAllocation;
    // Fresh memory is arbitrary: not a number, in either precision.
    std::memset(*block, 0xFF, bytes);
    nfd_fast::cuda::emulation::given().add(*block, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaFree(void* block) {
    nfd_fast::cuda::emulation::given().remove(block);
    std::free(block);
    return cudaSuccess;
}
inline cudaError_t cudaHostAlloc(void** block, std::size_t bytes, unsigned) {
    return cudaMalloc(block, bytes);
}
inline cudaError_t cudaFreeHost(void* block) { return cudaFree(block); }
inline cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from,
                                     std::size_t from_pitch, std::size_t width, std::size_t height,
                                     cudaMemcpyKind, cudaStream_t stream) {
    nfd_fast::cuda::emulation::enqueue_copy(stream, to, from, [=] {
        for (std::size_t row = 0; row < height; ++row) {
            std::memmove(static_cast<char*>(to) + row * to_pitch,
                         static_cast<const char*>(from) + row * from_pitch, width);
        }
    });
    return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes,
                                   cudaMemcpyKind kind, cudaStream_t stream) {
    return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}
inline cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
    nfd_fast::cuda::emulation::enqueue(stream, [=] { std::memset(to, value, bytes); });
    return cudaSuccess;
}
inline cudaError_t cudaMemGetInfo(std::size_t* available, std::size_t* total) {
    *available = *total = std::size_t{1} << 30;
    return cudaSuccess;
}
inline cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    *least = nfd_fast::cuda::emulation::kLeastPriority;
    *greatest = nfd_fast::cuda::emulation::kGreatestPriority;
    return cudaSuccess;
}
inline cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int priority) {
    const bool least = priority == nfd_fast::cuda::emulation::kLeastPriority;
    *stream = least ? new CUstream_st : nullptr;
    return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    nfd_fast::cuda::emulation::catch_up(stream);
    return cudaSuccess;
}
inline cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaStreamSynchronize(stream); }
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    cudaStreamSynchronize(stream);
    if (nfd_fast::cuda::emulation::puts_off(stream)) delete stream;
    return cudaSuccess;
}
struct CUevent_st {
    std::chrono::steady_clock::time_point reached;
    cudaStream_t stream = nullptr;
    std::size_t count = 0;  // of what the stream was given before
};
using cudaEvent_t = CUevent_st*;
constexpr unsigned cudaEventDefault = 0, cudaEventDisableTiming = 2;
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    *event = new CUevent_st;
    return cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event;
    return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    using nfd_fast::cuda::emulation::puts_off;
    nfd_fast::cuda::emulation::enqueue(
        stream, [event] { event->reached = std::chrono::steady_clock::now(); });
    event->stream = stream;
    event->count = puts_off(stream) ? stream->given : 0;
    return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    nfd_fast::cuda::emulation::catch_up(event->stream, event->count);
    return cudaSuccess;
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    const auto catch_up = [from = event->stream, count = event->count] {
        nfd_fast::cuda::emulation::catch_up(from, count);
    };
    nfd_fast::cuda::emulation::enqueue(stream, catch_up);
    return cudaSuccess;
}
inline cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
    *milliseconds = std::chrono::duration<float, std::milli>(to->reached - from->reached).count();
    return cudaSuccess;
}
inline cudaError_t cudaEventQuery(cudaEvent_t event) { return cudaEventSynchronize(event); }
inline cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
struct cudaDeviceProp {
    char name[256] = "emulated device";
    std::size_t totalGlobalMem = std::size_t{1} << 30;
    int major = 0, minor = 0, multiProcessorCount = 1;
};
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
    *properties = cudaDeviceProp{};
    return cudaSuccess;
}
inline cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = 0;
    return cudaSuccess;
}
inline cudaError_t cudaDriverGetVersion(int* version) {
    *version = 1;  // 0 would be none
    return cudaSuccess;
}
inline cudaError_t cudaMallocAsync(void** block, std::size_t bytes, cudaStream_t) {
    return cudaMalloc(block, bytes);
}
inline cudaError_t cudaFreeAsync(void* block, cudaStream_t stream) {
    nfd_fast::cuda::emulation::enqueue(stream, [block] { cudaFree(block); });
    return cudaSuccess;
}
inline cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return cudaSuccess;
}
