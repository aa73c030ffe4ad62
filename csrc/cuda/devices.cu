#include "cuda/device.hpp"
#include "cuda/devices.hpp"

namespace nfd_fast::cuda {

int runtime_version() {
    int version = 0;
    check(cudaRuntimeGetVersion(&version), "cudaRuntimeGetVersion");
    return version;
}

int driver_version() {
    int version = 0;
    check(cudaDriverGetVersion(&version), "cudaDriverGetVersion");
    return version;
}

int device_count() {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status == cudaErrorNoDevice) {
        cudaGetLastError();
        return 0;
    }
    check(status, "the search for devices");
    return count;
}

std::vector<Device> devices() {
    std::vector<Device> found;
    for (int index = 0; index < device_count(); ++index) {
        const OnDevice current(index);
        cudaDeviceProp properties;
        check(cudaGetDeviceProperties(&properties, index), "a question about the device");
        found.push_back({properties.name, static_cast<double>(properties.totalGlobalMem),
                         available_bytes(), properties.major, properties.minor,
                         properties.multiProcessorCount});
    }
    return found;
}

double available_bytes() {
    std::size_t available = 0, memory = 0;
    check(cudaMemGetInfo(&available, &memory), "cudaMemGetInfo");
    return static_cast<double>(available);
}

OnDevice::OnDevice(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    check(cudaSetDevice(device), "cudaSetDevice");
}

OnDevice::~OnDevice() { cudaSetDevice(before_); }

StreamMemory::StreamMemory(std::size_t bytes, cudaStream_t stream) : stream_(stream) {
    if (bytes > 0) check(cudaMallocAsync(&block_, bytes, stream), "cudaMallocAsync");
}

StreamMemory::~StreamMemory() {
    if (block_) cudaFreeAsync(block_, stream_);
}

void to_device(void* to, const void* from, std::size_t bytes, cudaStream_t stream) {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream), "a copy");
}

void to_host(void* to, const void* from, std::size_t bytes, cudaStream_t stream) {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream), "a copy");
    wait_for(stream);
}

void copy_there(void* to, const void* from, std::size_t bytes, cudaStream_t stream) {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream), "a copy");
}

void clear_there(void* to, std::size_t bytes, cudaStream_t stream) {
    check(cudaMemsetAsync(to, 0, bytes, stream), "clearing memory");
}

void wait_for(cudaStream_t stream) { check(cudaStreamSynchronize(stream), "a kernel"); }

}  // namespace nfd_fast::cuda
