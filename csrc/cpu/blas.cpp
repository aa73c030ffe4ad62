#include "cpu/blas.hpp"

#include <mutex>

#if NFD_FAST_SCIPY_OPENBLAS
#define BLAS_SYMBOL_PREFIX scipy_
#endif
#include <cblas.h>

// Names of the prefixed library of the scipy-openblas32 wheel, or the plain ones of a system CBLAS.
#if NFD_FAST_SCIPY_OPENBLAS
#define NFD_FAST_BLAS(name) scipy_##name
#else
#define NFD_FAST_BLAS(name) name
extern "C" {
// Present when the system's CBLAS is OpenBLAS; any other library sees one caller per thread and is
// expected to be single-threaded or to be told so by its own environment variable.
__attribute__((weak)) void openblas_set_num_threads(int);
__attribute__((weak)) int openblas_get_num_threads(void);
__attribute__((weak)) char* openblas_get_config(void);
}
#endif

namespace nfd_fast::blas {
namespace {

std::mutex guard;
int holders = 0;
int threads_before = 0;

bool can_set_threads() {
#if NFD_FAST_SCIPY_OPENBLAS
    return true;
#else
    return openblas_set_num_threads && openblas_get_num_threads;
#endif
}

CBLAS_TRANSPOSE flag(Transpose transpose) {
    return transpose == Transpose::yes ? CblasTrans : CblasNoTrans;
}

}  // namespace

void multiply(Transpose transpose_a, Transpose transpose_b, std::int64_t rows, std::int64_t columns,
              std::int64_t inner, float alpha, const float* a, std::int64_t stride_a,
              const float* b, std::int64_t stride_b, float beta, float* c, std::int64_t stride_c) {
    NFD_FAST_BLAS(cblas_sgemm)
    (CblasRowMajor, flag(transpose_a), flag(transpose_b), static_cast<int>(rows),
     static_cast<int>(columns), static_cast<int>(inner), alpha, a, static_cast<int>(stride_a), b,
     static_cast<int>(stride_b), beta, c, static_cast<int>(stride_c));
}

void multiply(Transpose transpose_a, Transpose transpose_b, std::int64_t rows, std::int64_t columns,
              std::int64_t inner, double alpha, const double* a, std::int64_t stride_a,
              const double* b, std::int64_t stride_b, double beta, double* c,
              std::int64_t stride_c) {
    NFD_FAST_BLAS(cblas_dgemm)
    (CblasRowMajor, flag(transpose_a), flag(transpose_b), static_cast<int>(rows),
     static_cast<int>(columns), static_cast<int>(inner), alpha, a, static_cast<int>(stride_a), b,
     static_cast<int>(stride_b), beta, c, static_cast<int>(stride_c));
}

void solve_upper(Transpose transpose, std::int64_t size, std::int64_t columns, const double* r,
                 std::int64_t stride_r, double* b, std::int64_t stride_b) {
    NFD_FAST_BLAS(cblas_dtrsm)
    (CblasRowMajor, CblasLeft, CblasUpper, flag(transpose), CblasNonUnit, static_cast<int>(size),
     static_cast<int>(columns), 1.0, r, static_cast<int>(stride_r), b, static_cast<int>(stride_b));
}

SingleThreaded::SingleThreaded() {
    const std::lock_guard<std::mutex> lock(guard);
    if (holders++ == 0 && can_set_threads()) {
        threads_before = NFD_FAST_BLAS(openblas_get_num_threads)();
        NFD_FAST_BLAS(openblas_set_num_threads)(1);
    }
}

SingleThreaded::~SingleThreaded() {
    const std::lock_guard<std::mutex> lock(guard);
    if (--holders == 0 && can_set_threads()) {
        NFD_FAST_BLAS(openblas_set_num_threads)(threads_before);
    }
}

const char* description() {
#if NFD_FAST_SCIPY_OPENBLAS
    return scipy_openblas_get_config();
#else
    return openblas_get_config ? openblas_get_config() : "system CBLAS";
#endif
}

}  // namespace nfd_fast::blas
