# A compiled tool of somebody else's, using the noise without Python or the GIL.
from libc.stdint cimport uint32_t, uint64_t

from nfd_fast.cython_api cimport (
    STREAM_HIDDEN,
    Stream,
    nfd_error_text,
    nfd_normal_f32,
    nfd_normal_f64,
    nfd_words,
)


def words(uint64_t seed, int layer, uint32_t column, long first, uint32_t[::1] out):
    cdef int status
    with nogil:
        status = nfd_words(seed, STREAM_HIDDEN, layer, column, first, out.shape[0], &out[0])
    return nfd_error_text(status).decode()


def normals(uint64_t seed, int layer, uint32_t column, long first, float[::1] single,
            double[::1] wide):
    cdef int status
    with nogil:
        status = nfd_normal_f32(seed, STREAM_HIDDEN, layer, column, first, single.shape[0],
                                &single[0])
        if status == 0:
            status = nfd_normal_f64(seed, STREAM_HIDDEN, layer, column, first, wide.shape[0],
                                    &wide[0])
    return nfd_error_text(status).decode()


def error_of(int stream, long layer, long first, long count):
    return nfd_error_text(nfd_words(0, <Stream> stream, layer, 0, first, count, NULL)).decode()
