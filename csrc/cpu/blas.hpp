// Matrix products in the calling thread, by the BLAS chosen at build time.
//
// Parallelism is ours: the teams of team.hpp cut products into tiles whose shape depends on the
// problem alone, which is what makes results independent of the number of threads.
#pragma once

#include <cstdint>

#include "nfd_fast/small_matrix.hpp"

namespace nfd_fast::blas {

using nfd_fast::Transpose;

// Row-major C = alpha op(A) op(B) + beta C, with op(A) rows x inner and op(B) inner x columns.
void multiply(Transpose transpose_a, Transpose transpose_b, std::int64_t rows, std::int64_t columns,
              std::int64_t inner, float alpha, const float* a, std::int64_t stride_a,
              const float* b, std::int64_t stride_b, float beta, float* c, std::int64_t stride_c);
void multiply(Transpose transpose_a, Transpose transpose_b, std::int64_t rows, std::int64_t columns,
              std::int64_t inner, double alpha, const double* a, std::int64_t stride_a,
              const double* b, std::int64_t stride_b, double beta, double* c,
              std::int64_t stride_c);

// Row-major B <- op(R)^-1 B for an upper triangular R, size x size, and a B of `columns` columns.
void solve_upper(Transpose transpose, std::int64_t size, std::int64_t columns, const double* r,
                 std::int64_t stride_r, double* b, std::int64_t stride_b);

// While one exists, the BLAS library runs each product in its caller's thread. Nests, and may be
// held by several threads at once.
class SingleThreaded {
  public:
    SingleThreaded();
    ~SingleThreaded();
    SingleThreaded(const SingleThreaded&) = delete;
    SingleThreaded& operator=(const SingleThreaded&) = delete;
};

// OpenBLAS keeps one work buffer per concurrent caller and ends the process when it runs out; the
// wheel is built for 64 of them.
constexpr int kMostCallers = 64;

const char* description();

}  // namespace nfd_fast::blas
