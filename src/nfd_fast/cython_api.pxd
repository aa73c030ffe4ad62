# C-level access to the noise of nfd_fast for other compiled tools: `cimport nfd_fast.cython_api`.
#
# Every function returns 0, or the number of an argument error that nfd_error_text() puts in words;
# then nothing was written. None needs the GIL or raises.
from libc.stdint cimport int64_t, uint32_t, uint64_t

cpdef enum Stream:
    # What noise is used for: the tag field of the Philox counter.
    STREAM_INPUT
    STREAM_READOUT
    STREAM_HIDDEN
    STREAM_BACKWARD_HIDDEN
    STREAM_FORWARD_NOISE
    STREAM_BACKWARD_NOISE
    STREAM_DATA
    STREAM_SPARE

# Random words of `count` consecutive neurons from `first` (a multiple of 4) of one column of a fine
# layer (counted from 1; 1 for input, readout and data) into out[count].
cdef int nfd_words(uint64_t seed, Stream stream, int64_t layer, uint32_t column, int64_t first,
                   int64_t count, uint32_t* out) noexcept nogil

# The standard normal numbers made of these words.
cdef int nfd_normal_f32(uint64_t seed, Stream stream, int64_t layer, uint32_t column,
                        int64_t first, int64_t count, float* out) noexcept nogil
cdef int nfd_normal_f64(uint64_t seed, Stream stream, int64_t layer, uint32_t column,
                        int64_t first, int64_t count, double* out) noexcept nogil

cdef const char* nfd_error_text(int status) noexcept nogil
