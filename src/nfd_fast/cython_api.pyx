"""C-level functions for other compiled tools; see cython_api.pxd."""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t


cdef extern from "nfd_fast/nfd.h" nogil:
    ctypedef struct CStack "nfd_stack":
        int64_t width, depth, batch
        double branch_factor
        int32_t activation, skip

    ctypedef struct CStep "nfd_step":
        int64_t width, batch, image_count, direction_count, column_count
        uint64_t seed
        int64_t layer
        int32_t stream

    int32_t c_abi_version "nfd_abi_version"()
    const char* c_error_text "nfd_error_text"(int32_t)
    int32_t c_activation "nfd_activation"(const char*)
    int32_t c_words "nfd_words"(uint64_t, int32_t, int64_t, uint32_t, int64_t, int64_t, uint32_t*)
    int32_t c_normal_f32 "nfd_normal_f32"(uint64_t, int32_t, int64_t, uint32_t, int64_t, int64_t,
                                          float*)
    int32_t c_normal_f64 "nfd_normal_f64"(uint64_t, int32_t, int64_t, uint32_t, int64_t, int64_t,
                                          double*)
    int32_t c_forward_f32 "nfd_residual_forward_f32"(const CStack*, const float*, float*, int32_t)
    int32_t c_forward_f64 "nfd_residual_forward_f64"(const CStack*, const double*, double*,
                                                     int32_t)
    int32_t c_backward_f32 "nfd_residual_backward_f32"(const CStack*, const float*, const float*,
                                                       float*, int32_t)
    int32_t c_backward_f64 "nfd_residual_backward_f64"(const CStack*, const double*, const double*,
                                                       double*, int32_t)
    int32_t c_update_f32 "nfd_sgd_update_f32"(const CStack*, const float*, const float*,
                                              const double*, double, float*, int32_t)
    int32_t c_update_f64 "nfd_sgd_update_f64"(const CStack*, const double*, const double*,
                                              const double*, double, double*, int32_t)
    int32_t c_step_f32 "nfd_euler_maruyama_step_f32"(
        const CStep*, const float*, const float*, const double*, const float*, const double*,
        const uint32_t*, const double*, float*, int32_t)
    int32_t c_step_f64 "nfd_euler_maruyama_step_f64"(
        const CStep*, const double*, const double*, const double*, const double*, const double*,
        const uint32_t*, const double*, double*, int32_t)


cdef int nfd_abi_version() noexcept nogil:
    return c_abi_version()


cdef const char* nfd_error_text(int status) noexcept nogil:
    return c_error_text(status)


cdef int nfd_activation(const char* name) noexcept nogil:
    return c_activation(name)


cdef int nfd_words(uint64_t seed, Stream stream, int64_t layer, uint32_t column, int64_t first,
                   int64_t count, uint32_t* out) noexcept nogil:
    return c_words(seed, <int32_t> stream, layer, column, first, count, out)


cdef int nfd_normal_f32(uint64_t seed, Stream stream, int64_t layer, uint32_t column,
                        int64_t first, int64_t count, float* out) noexcept nogil:
    return c_normal_f32(seed, <int32_t> stream, layer, column, first, count, out)


cdef int nfd_normal_f64(uint64_t seed, Stream stream, int64_t layer, uint32_t column,
                        int64_t first, int64_t count, double* out) noexcept nogil:
    return c_normal_f64(seed, <int32_t> stream, layer, column, first, count, out)


# Structs are copied member by member: those of a consumer are its own types, which cython_api.pxd
# describes without a header. NULL stays NULL, and an error of the function it is passed to.
cdef const CStack* copied_stack(const nfd_stack* given, CStack* to) noexcept nogil:
    if given is NULL:
        return NULL
    to.width = given.width
    to.depth = given.depth
    to.batch = given.batch
    to.branch_factor = given.branch_factor
    to.activation = given.activation
    to.skip = given.skip
    return to


cdef const CStep* copied_step(const nfd_step* given, CStep* to) noexcept nogil:
    if given is NULL:
        return NULL
    to.width = given.width
    to.batch = given.batch
    to.image_count = given.image_count
    to.direction_count = given.direction_count
    to.column_count = given.column_count
    to.seed = given.seed
    to.layer = given.layer
    to.stream = <int32_t> given.stream
    return to


cdef int nfd_residual_forward_f32(const nfd_stack* stack, const float* hidden, float* features,
                                  int threads) noexcept nogil:
    cdef CStack copy
    return c_forward_f32(copied_stack(stack, &copy), hidden, features, threads)


cdef int nfd_residual_forward_f64(const nfd_stack* stack, const double* hidden, double* features,
                                  int threads) noexcept nogil:
    cdef CStack copy
    return c_forward_f64(copied_stack(stack, &copy), hidden, features, threads)


cdef int nfd_residual_backward_f32(const nfd_stack* stack, const float* hidden,
                                   const float* features, float* adjoints,
                                   int threads) noexcept nogil:
    cdef CStack copy
    return c_backward_f32(copied_stack(stack, &copy), hidden, features, adjoints, threads)


cdef int nfd_residual_backward_f64(const nfd_stack* stack, const double* hidden,
                                   const double* features, double* adjoints,
                                   int threads) noexcept nogil:
    cdef CStack copy
    return c_backward_f64(copied_stack(stack, &copy), hidden, features, adjoints, threads)


cdef int nfd_sgd_update_f32(const nfd_stack* stack, const float* features, const float* adjoints,
                            const double* sample_weights, double step, float* hidden,
                            int threads) noexcept nogil:
    cdef CStack copy
    return c_update_f32(copied_stack(stack, &copy), features, adjoints, sample_weights, step,
                        hidden, threads)


cdef int nfd_sgd_update_f64(const nfd_stack* stack, const double* features, const double* adjoints,
                            const double* sample_weights, double step, double* hidden,
                            int threads) noexcept nogil:
    cdef CStack copy
    return c_update_f64(copied_stack(stack, &copy), features, adjoints, sample_weights, step,
                        hidden, threads)


cdef int nfd_euler_maruyama_step_f32(
        const nfd_step* step, const float* state, const float* images,
        const double* image_coefficients, const float* directions,
        const double* direction_coefficients, const uint32_t* columns,
        const double* noise_coefficients, float* out, int threads) noexcept nogil:
    cdef CStep copy
    return c_step_f32(copied_step(step, &copy), state, images, image_coefficients, directions,
                      direction_coefficients, columns, noise_coefficients, out, threads)


cdef int nfd_euler_maruyama_step_f64(
        const nfd_step* step, const double* state, const double* images,
        const double* image_coefficients, const double* directions,
        const double* direction_coefficients, const uint32_t* columns,
        const double* noise_coefficients, double* out, int threads) noexcept nogil:
    cdef CStep copy
    return c_step_f64(copied_step(step, &copy), state, images, image_coefficients, directions,
                      direction_coefficients, columns, noise_coefficients, out, threads)
