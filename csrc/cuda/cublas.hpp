// Products of large matrices, by NVIDIA's library, which is loaded when it is first asked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

using cudaStream_t = struct CUstream_st*;  // as CUDA has it

namespace nfd_fast::cuda {

// Where to look for the library before the loader's usual places, for what is loaded afterwards;
// empty for nowhere.
void set_cublas_path(const std::string& path);

// What was loaded: its path as it was found, or "" if nothing was. Throws nothing.
std::string cublas_path();

// float32 products may round their factors to TensorFloat-32 (10 bits), several times as fast.
void allow_tf32(bool allowed);
bool tf32_allowed();

enum class Transpose : int { no = 0, yes = 1 };

// The library at work on one stream.
class Cublas {
  public:
    // Memory of the device that it needs, in bytes; a multiple of its alignment is taken from it.
    static constexpr std::size_t kWorkspace = std::size_t{32} << 20;
    static constexpr std::size_t kAlignment = 256;

    // Throws DeviceError if the library is missing, with what to install.
    Cublas(cudaStream_t stream, void* workspace);
    ~Cublas();
    Cublas(const Cublas&) = delete;
    Cublas& operator=(const Cublas&) = delete;

    // Row-major, as the processor's (cpu/blas.hpp): C (rows, columns) = alpha op(A) op(B) + beta C.
    void multiply(Transpose transpose_a, Transpose transpose_b, std::int64_t rows,
                  std::int64_t columns, std::int64_t inner, float alpha, const float* a,
                  std::int64_t stride_a, const float* b, std::int64_t stride_b, float beta,
                  float* c, std::int64_t stride_c) const;
    void multiply(Transpose transpose_a, Transpose transpose_b, std::int64_t rows,
                  std::int64_t columns, std::int64_t inner, double alpha, const double* a,
                  std::int64_t stride_a, const double* b, std::int64_t stride_b, double beta,
                  double* c, std::int64_t stride_c) const;

  private:
    void* handle_ = nullptr;
};

}  // namespace nfd_fast::cuda
