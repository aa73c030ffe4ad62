// CUDA on the processor, for tests: see device.hpp.
//
// Here is a run-time library with one device, whose memory is the host's. The threads of a launch
// are fibers of the calling thread (emulation_fibers.hpp). They take turns where they wait for each
// other, so that a run is repeatable, and there is one memory: what a kernel must not leave to
// chance is not found by them. For that each thread can be a context of ThreadSanitizer, which
// knows how they wait for each other (emulation_contexts.hpp; tests/backend/test_cuda_races.py).
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <cstring>

#if defined(NFD_FAST_EMULATION_CONTEXTS)
#include "cuda/emulation_contexts.hpp"
#else
#include "cuda/emulation_fibers.hpp"
#endif

// --- The run-time library: one device, whose memory is the host's; streams run at once -----------

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
using cudaStream_t = struct CUstream_st*;
constexpr unsigned cudaStreamNonBlocking = 1, cudaHostAllocMapped = 2;

inline const char* cudaGetErrorString(cudaError_t) { return "an emulated error"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMalloc(void** block, std::size_t bytes) {
    *block = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (!*block) return cudaErrorMemoryAllocation;
    // Fresh memory is arbitrary: not a number, in either precision.
    std::memset(*block, 0xFF, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaFree(void* block) {
    std::free(block);
    return cudaSuccess;
}
inline cudaError_t cudaHostAlloc(void** block, std::size_t bytes, unsigned) {
    return cudaMalloc(block, bytes);
}
inline cudaError_t cudaFreeHost(void* block) { return cudaFree(block); }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                                   cudaStream_t) {
    std::memmove(to, from, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from,
                                     std::size_t from_pitch, std::size_t width, std::size_t height,
                                     cudaMemcpyKind, cudaStream_t) {
    for (std::size_t row = 0; row < height; ++row) {
        std::memmove(static_cast<char*>(to) + row * to_pitch,
                     static_cast<const char*>(from) + row * from_pitch, width);
    }
    return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t) {
    std::memset(to, value, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaMemGetInfo(std::size_t* available, std::size_t* total) {
    *available = *total = std::size_t{1} << 30;
    return cudaSuccess;
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
    *stream = nullptr;
    return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
struct CUevent_st {
    std::chrono::steady_clock::time_point reached;
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
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
    event->reached = std::chrono::steady_clock::now();
    return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
    *milliseconds = std::chrono::duration<float, std::milli>(to->reached - from->reached).count();
    return cudaSuccess;
}
inline cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
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
inline cudaError_t cudaFreeAsync(void* block, cudaStream_t) { return cudaFree(block); }
inline cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return cudaSuccess;
}
