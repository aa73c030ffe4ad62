// The devices that there are, and work on a caller's own: for the bindings, which are not compiled
// by CUDA's compiler.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

using cudaStream_t = struct CUstream_st*;  // as CUDA has it

namespace nfd_fast::cuda {

// Streams that need no making, as CUDA and DLPack number them; any other number is a handle.
constexpr std::uintptr_t kLegacyStream = 1, kThreadStream = 2;

struct Device {
    std::string name;
    double memory, available;  // bytes
    int major, minor;          // compute capability
    int multiprocessors;
};

// Versions as CUDA counts: 1000 major + 10 minor. That of the driver is 0 where there is none.
int runtime_version();
int driver_version();

// Throws DeviceError if the driver is missing, or too old for this runtime.
int device_count();
std::vector<Device> devices();

// Free memory of the current device, in bytes.
double available_bytes();

// Makes a device the current one, and afterwards the one before again.
class OnDevice {
  public:
    explicit OnDevice(int device);
    ~OnDevice();
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

  private:
    int before_ = 0;
};

// Memory of the device for the work on one stream: taken and given back in the stream's order.
class StreamMemory {
  public:
    StreamMemory(std::size_t bytes, cudaStream_t stream);
    ~StreamMemory();
    StreamMemory(const StreamMemory&) = delete;
    StreamMemory& operator=(const StreamMemory&) = delete;

    template <class Element>
    Element* as() const {
        return static_cast<Element*>(block_);
    }

  private:
    void* block_ = nullptr;
    cudaStream_t stream_;
};

// Between host and device; to_device() has read all of `from` when it returns, to_host() has
// written all of `to`.
void to_device(void* to, const void* from, std::size_t bytes, cudaStream_t stream);
void to_host(void* to, const void* from, std::size_t bytes, cudaStream_t stream);

// On one device.
void copy_there(void* to, const void* from, std::size_t bytes, cudaStream_t stream);
void clear_there(void* to, std::size_t bytes, cudaStream_t stream);

void wait_for(cudaStream_t stream);

}  // namespace nfd_fast::cuda
