#include <atomic>
#include <initializer_list>
#include <map>
#include <mutex>
#include <type_traits>
#include <vector>

#include "cuda/cublas.hpp"

#if !defined(NFD_FAST_EMULATES_CUDA)
#include <dlfcn.h>
#endif

#include "cuda/device.hpp"

namespace nfd_fast::cuda {
namespace {

std::mutex guard;
std::string given_path;
std::atomic<bool> tf32{false};

// The part of the library's C interface that is used; it has not changed since version 4.
struct Interface {
    std::string path;
    int (*create)(void** handle);
    int (*set_stream)(void* handle, cudaStream_t stream);
    int (*set_workspace)(void* handle, void* workspace, std::size_t bytes);
    int (*set_math_mode)(void* handle, int mode);
    int (*multiply_float)(void* handle, int transpose_a, int transpose_b, int rows, int columns,
                          int inner, const float* alpha, const float* a, int stride_a,
                          const float* b, int stride_b, const float* beta, float* c, int stride_c);
    int (*multiply_double)(void* handle, int transpose_a, int transpose_b, int rows, int columns,
                           int inner, const double* alpha, const double* a, int stride_a,
                           const double* b, int stride_b, const double* beta, double* c,
                           int stride_c);
};
constexpr int kDefaultMath = 0, kTf32Math = 3;

#if defined(NFD_FAST_EMULATES_CUDA)

// The same interface on the processor: column-major, without a thought for speed. A handle is its
// stream.
template <class T>
int multiply_slowly(void* handle, int transpose_a, int transpose_b, int rows, int columns,
                    int inner, const T* alpha, const T* a, int stride_a, const T* b, int stride_b,
                    const T* beta, T* c, int stride_c) {
    const auto multiply = [=, alpha = *alpha, beta = *beta] {
        for (int i = 0; i < rows; ++i) {
            for (int j = 0; j < columns; ++j) {
                T sum = 0;
                for (int k = 0; k < inner; ++k) {
                    sum += a[transpose_a ? i * stride_a + k : k * stride_a + i] *
                           b[transpose_b ? k * stride_b + j : j * stride_b + k];
                }
                T& to = c[j * stride_c + i];
                to = alpha * sum + (beta == 0 ? T(0) : beta * to);
            }
        }
    };
    emulation::enqueue(*static_cast<cudaStream_t*>(handle), multiply);
    return 0;
}

const Interface* load() {
    static const Interface emulated{"emulated",
                                    [](void** handle) {
                                        *handle = new cudaStream_t{};
                                        return 0;
                                    },
                                    [](void* handle, cudaStream_t stream) {
                                        *static_cast<cudaStream_t*>(handle) = stream;
                                        return 0;
                                    },
                                    [](void*, void*, std::size_t) { return 0; },
                                    [](void*, int) { return 0; },
                                    multiply_slowly<float>,
                                    multiply_slowly<double>};
    return &emulated;
}

#else

// All or nothing; the library stays loaded.
bool bind(const std::string& path, Interface& to) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) return false;
    bool complete = true;
    const auto find = [&](const char* name, auto& function) {
        using Function = std::remove_reference_t<decltype(function)>;
        function = reinterpret_cast<Function>(dlsym(library, name));
        complete = complete && function;
    };
    find("cublasCreate_v2", to.create);
    find("cublasSetStream_v2", to.set_stream);
    find("cublasSetWorkspace_v2", to.set_workspace);
    find("cublasSetMathMode", to.set_math_mode);
    find("cublasSgemm_v2", to.multiply_float);
    find("cublasDgemm_v2", to.multiply_double);
    to.path = path;
    return complete;
}

// What is found is kept, what is missing may be there next time.
const Interface* load() {
    static Interface found;
    static bool is_found = false;
    const std::lock_guard<std::mutex> lock(guard);
    if (is_found) return &found;
    constexpr int own = CUDART_VERSION / 1000;
    std::vector<std::string> paths;
    if (!given_path.empty()) paths.push_back(given_path);
    for (const int version : {own, own == 13 ? 12 : 13}) {
        paths.push_back("libcublas.so." + std::to_string(version));
    }
    for (const std::string& path : paths) {
        if ((is_found = bind(path, found))) return &found;
    }
    return nullptr;
}

#endif

const Interface& loaded() {
    const Interface* interface = load();
    if (!interface) {
        throw DeviceError(
            "cuBLAS is needed for layers of this width or batch on a CUDA device, and was not "
            "found: pip install nvidia-cublas (CUDA 13) or nvidia-cublas-cu12, or add the folder "
            "of the CUDA toolkit that has libcublas.so to LD_LIBRARY_PATH");
    }
    return *interface;
}

void check_cublas(int status, const char* what) {
    if (status != 0) {
        throw DeviceError(std::string("cuBLAS failed in ") + what + ": status " +
                          std::to_string(status));
    }
}

// A row-major product is the column-major product of the transposes.
template <class T, class Function>
void multiply_by(Function function, void* handle, Transpose transpose_a, Transpose transpose_b,
                 std::int64_t rows, std::int64_t columns, std::int64_t inner, T alpha, const T* a,
                 std::int64_t stride_a, const T* b, std::int64_t stride_b, T beta, T* c,
                 std::int64_t stride_c) {
    check_cublas(function(handle, static_cast<int>(transpose_b), static_cast<int>(transpose_a),
                          static_cast<int>(columns), static_cast<int>(rows),
                          static_cast<int>(inner), &alpha, b, static_cast<int>(stride_b), a,
                          static_cast<int>(stride_a), &beta, c, static_cast<int>(stride_c)),
                 "a product");
}

// Its start takes memory and its end waits for the device, so that those that are no longer used
// are kept, by device, for who comes next.
class IdleHandles {
  public:
    void* take() {
        {
            const std::lock_guard<std::mutex> lock(guard_);
            std::vector<void*>& idle = handles_[current_device()];
            if (!idle.empty()) {
                void* handle = idle.back();
                idle.pop_back();
                return handle;
            }
        }
        void* handle = nullptr;
        check_cublas(loaded().create(&handle), "its start");
        return handle;
    }
    // The device is the current one.
    void give_back(void* handle) {
        loaded().set_stream(handle, nullptr);  // the stream that it has may end before the next
        const std::lock_guard<std::mutex> lock(guard_);
        handles_[current_device()].push_back(handle);
    }

  private:
    static int current_device() {
        int device = 0;
        check(cudaGetDevice(&device), "cudaGetDevice");
        return device;
    }

    std::mutex guard_;
    std::map<int, std::vector<void*>> handles_;
};

// Never destroyed: at the end of a process nobody knows whether the driver is still there.
IdleHandles& idle_handles() {
    static IdleHandles& handles = *new IdleHandles;
    return handles;
}

}  // namespace

void set_cublas_path(const std::string& path) {
    const std::lock_guard<std::mutex> lock(guard);
    given_path = path;
}

std::string cublas_path() {
    const Interface* interface = load();
    return interface ? interface->path : "";
}

void allow_tf32(bool allowed) { tf32 = allowed; }
bool tf32_allowed() { return tf32; }

Cublas::Cublas(cudaStream_t stream, void* workspace) {
    const Interface& library = loaded();
    handle_ = idle_handles().take();
    try {
        check_cublas(library.set_stream(handle_, stream), "its start");
        check_cublas(library.set_workspace(handle_, workspace, kWorkspace), "its start");
        check_cublas(library.set_math_mode(handle_, tf32 ? kTf32Math : kDefaultMath), "its start");
    } catch (...) {
        idle_handles().give_back(handle_);
        throw;
    }
}

Cublas::~Cublas() { idle_handles().give_back(handle_); }

void Cublas::multiply(Transpose transpose_a, Transpose transpose_b, std::int64_t rows,
                      std::int64_t columns, std::int64_t inner, float alpha, const float* a,
                      std::int64_t stride_a, const float* b, std::int64_t stride_b, float beta,
                      float* c, std::int64_t stride_c) const {
    multiply_by(loaded().multiply_float, handle_, transpose_a, transpose_b, rows, columns, inner,
                alpha, a, stride_a, b, stride_b, beta, c, stride_c);
}
void Cublas::multiply(Transpose transpose_a, Transpose transpose_b, std::int64_t rows,
                      std::int64_t columns, std::int64_t inner, double alpha, const double* a,
                      std::int64_t stride_a, const double* b, std::int64_t stride_b, double beta,
                      double* c, std::int64_t stride_c) const {
    multiply_by(loaded().multiply_double, handle_, transpose_a, transpose_b, rows, columns, inner,
                alpha, a, stride_a, b, stride_b, beta, c, stride_c);
}

}  // namespace nfd_fast::cuda
