# The C interface of nfd_fast for Cython: `cimport nfd_fast.cython_api`.
#
# The functions are those of nfd_fast/nfd.h; nothing needs to be linked. Every one that returns an
# int returns 0, or the number of an error that nfd_error_text() puts in words; then nothing was
# written. None needs the GIL or raises.
#
# Arrays are C-contiguous with the width last: (B, n) has sample b's neuron i at [b * n + i].
# n = width, L = depth, B = batch. An array without entries may be NULL. `threads` is at least 1 and
# changes the speed, never the result; more than 64 are not used, and calls at the same time must not
# ask for more together. Formulas and results are those of the Python functions of the same names in
# nfd_fast.kernels.
#
# Names, signatures and structs below don't change while nfd_abi_version() stays the same.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

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

cdef int nfd_abi_version() noexcept nogil

# What a status means, in words; for any number. The text is static.
cdef const char* nfd_error_text(int status) noexcept nogil

# The number of an activation of nfd_fast.ACTIVATIONS, e.g. "tanh"; -1 for an unknown name.
cdef int nfd_activation(const char* name) noexcept nogil

# --- Noise

# Random words of `count` consecutive neurons from `first` (a multiple of 4) of one column of a fine
# layer (counted from 1; 1 for input, readout and data) into out (count).
cdef int nfd_words(uint64_t seed, Stream stream, int64_t layer, uint32_t column, int64_t first,
                   int64_t count, uint32_t* out) noexcept nogil

# The standard normal numbers made of these words.
cdef int nfd_normal_f32(uint64_t seed, Stream stream, int64_t layer, uint32_t column,
                        int64_t first, int64_t count, float* out) noexcept nogil
cdef int nfd_normal_f64(uint64_t seed, Stream stream, int64_t layer, uint32_t column,
                        int64_t first, int64_t count, double* out) noexcept nogil

# --- Hidden layers

# A stack of hidden layers on one batch.
ctypedef struct nfd_stack:
    int64_t width          # n, 1 ... 2^31 - 1
    int64_t depth          # L, at least 1
    int64_t batch          # B, 0 ... 2^31 - 1
    double branch_factor   # beta, finite; nfd_sgd_update does not read it
    int32_t activation     # phi, see nfd_activation()
    int32_t skip           # 0: without skip connections; nfd_sgd_update does not read it

# Features: H_l = H_{l-1} + (beta/sqrt(n)) W_l phi(H_{l-1}) for l = 1 ... L.
# hidden (L, n, n), indexed [layer][out][in]; features (L+1, B, n), of which the caller has filled
# H_0 and the rest is written. They must not overlap.
cdef int nfd_residual_forward_f32(const nfd_stack* stack, const float* hidden, float* features,
                                  int threads) noexcept nogil
cdef int nfd_residual_forward_f64(const nfd_stack* stack, const double* hidden, double* features,
                                  int threads) noexcept nogil

# Adjoints: G_{l-1} = G_l + (beta/sqrt(n)) phi'(H_{l-1}) o (W_l^T G_l) for l = L ... 1.
# hidden (L, n, n); features (L+1, B, n); adjoints (L+1, B, n), of which the caller has filled G_L,
# the last, and the rest is written. It must not overlap the others.
cdef int nfd_residual_backward_f32(const nfd_stack* stack, const float* hidden,
                                   const float* features, float* adjoints,
                                   int threads) noexcept nogil
cdef int nfd_residual_backward_f64(const nfd_stack* stack, const double* hidden,
                                   const double* features, double* adjoints,
                                   int threads) noexcept nogil

# Update: W_l -= (step/sqrt(n)) sum_b w_b G_l[b] phi(H_{l-1}[b])^T for l = 1 ... L.
# features and adjoints (L+1, B, n); sample_weights (B), w, finite; step = eta beta m, finite;
# hidden (L, n, n) is changed and must not overlap the others.
cdef int nfd_sgd_update_f32(const nfd_stack* stack, const float* features, const float* adjoints,
                            const double* sample_weights, double step, float* hidden,
                            int threads) noexcept nogil
cdef int nfd_sgd_update_f64(const nfd_stack* stack, const double* features, const double* adjoints,
                            const double* sample_weights, double step, double* hidden,
                            int threads) noexcept nogil

# --- A layer without its matrix

# Sizes and noise of one step of the conditional representation.
ctypedef struct nfd_step:
    int64_t width            # n, 1 ... 2^31 - 1
    int64_t batch            # B, 0 ... 2^31 - 1
    int64_t image_count      # p, at least 0
    int64_t direction_count  # q, at least 0
    int64_t column_count     # m, at least 0
    uint64_t seed            # of the noise
    int64_t layer            # the fine layer, 1 ... 2^24
    Stream stream

# out[b] = state[b] + sum_i images[i] image_coefficients[i][b]
#                   + sum_j directions[j] direction_coefficients[j][b]
#                   + sum_c Xi_c noise_coefficients[c][b],
# Xi_c the normal numbers of column columns[c], which are never stored.
# state and out (B, n); images (p, n), directions (q, n); their coefficients (p, B) and (q, B);
# columns (m); noise_coefficients (m, B). Coefficients are finite, and rounded to the type of the
# state. out may be state; it must not overlap it in part, nor anything else.
cdef int nfd_euler_maruyama_step_f32(
    const nfd_step* step, const float* state, const float* images, const double* image_coefficients,
    const float* directions, const double* direction_coefficients, const uint32_t* columns,
    const double* noise_coefficients, float* out, int threads) noexcept nogil
cdef int nfd_euler_maruyama_step_f64(
    const nfd_step* step, const double* state, const double* images,
    const double* image_coefficients, const double* directions,
    const double* direction_coefficients, const uint32_t* columns,
    const double* noise_coefficients, double* out, int threads) noexcept nogil
