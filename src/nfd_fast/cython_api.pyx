"""C-level functions for other compiled tools; see cython_api.pxd."""

from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef extern from "cpu/kernels.hpp" namespace "nfd_fast" nogil:
    cppclass NoiseAddress:
        pass

    cppclass NoiseStream "nfd_fast::Stream":
        pass

    NoiseAddress noise_address(uint64_t seed, NoiseStream stream, int64_t layer)

    cppclass SingleKernels "nfd_fast::VectorKernels<float>":
        void normal_neurons(NoiseAddress, uint32_t, int64_t, int64_t, float*)

    cppclass DoubleKernels "nfd_fast::VectorKernels<double>":
        void normal_neurons(NoiseAddress, uint32_t, int64_t, int64_t, double*)

    cppclass KernelTable:
        void words(NoiseAddress, uint32_t, int64_t, int64_t, uint32_t*)
        SingleKernels float32
        DoubleKernels float64

    const KernelTable& kernels()


cdef enum Status:
    SUCCESS
    UNKNOWN_STREAM
    LAYER_OUT_OF_RANGE
    NEURONS_OUT_OF_RANGE
    MISALIGNED_FIRST_NEURON
    NO_OUTPUT


cdef Status check(Stream stream, int64_t layer, int64_t first, int64_t count,
                  const void* out) noexcept nogil:
    if <int> stream < STREAM_INPUT or <int> stream > STREAM_SPARE:
        return UNKNOWN_STREAM
    if layer < 1 or layer > (<int64_t> 1 << 24):
        return LAYER_OUT_OF_RANGE
    # Compared without adding: first + count may not fit.
    if first < 0 or count < 0 or count > (<int64_t> 1 << 32) \
            or first > (<int64_t> 1 << 32) - count:
        return NEURONS_OUT_OF_RANGE
    if first % 4 != 0:
        return MISALIGNED_FIRST_NEURON
    if out is NULL and count > 0:
        return NO_OUTPUT
    return SUCCESS


cdef int nfd_words(uint64_t seed, Stream stream, int64_t layer, uint32_t column, int64_t first,
                   int64_t count, uint32_t* out) noexcept nogil:
    cdef Status status = check(stream, layer, first, count, out)
    if status == SUCCESS:
        kernels().words(noise_address(seed, <NoiseStream> <int> stream, layer), column, first,
                        count, out)
    return status


cdef int nfd_normal_f32(uint64_t seed, Stream stream, int64_t layer, uint32_t column,
                        int64_t first, int64_t count, float* out) noexcept nogil:
    cdef Status status = check(stream, layer, first, count, out)
    if status == SUCCESS:
        kernels().float32.normal_neurons(
            noise_address(seed, <NoiseStream> <int> stream, layer), column, first, count, out)
    return status


cdef int nfd_normal_f64(uint64_t seed, Stream stream, int64_t layer, uint32_t column,
                        int64_t first, int64_t count, double* out) noexcept nogil:
    cdef Status status = check(stream, layer, first, count, out)
    if status == SUCCESS:
        kernels().float64.normal_neurons(
            noise_address(seed, <NoiseStream> <int> stream, layer), column, first, count, out)
    return status


cdef const char* nfd_error_text(int status) noexcept nogil:
    if status == SUCCESS:
        return b"success"
    if status == UNKNOWN_STREAM:
        return b"stream must be one of the Stream constants"
    if status == LAYER_OUT_OF_RANGE:
        return b"layer must be in 1 ... 2**24"
    if status == NEURONS_OUT_OF_RANGE:
        return b"first and count must be nonnegative and end at most at neuron 2**32"
    if status == MISALIGNED_FIRST_NEURON:
        return b"first must be a multiple of 4"
    if status == NO_OUTPUT:
        return b"out must not be NULL"
    return b"unknown status"
