/* The C interface of nfd_fast: plain C99, for any language that can call C.
 *
 * Every function that returns a status returns NFD_SUCCESS (0) or what was wrong, in words by
 * nfd_error_text(); arguments are checked first, and nothing is written unless all of them are
 * right and there is memory for the work. No exception passes, nothing needs Python. Functions may
 * be called from several threads at once, on arrays that nobody else writes meanwhile.
 *
 * Arrays are C-contiguous with the width last: (B, n) has sample b's neuron i at [b * n + i].
 * n = width, L = depth, B = batch. An array without entries may be NULL. Formulas are those of the
 * Python functions of the same names in nfd_fast.kernels, and so are the results, bit by bit.
 * Numbers that are not finite propagate as in any IEEE arithmetic, except where "finite" is asked.
 *
 * `threads` is at least 1 and changes the speed, never the result; more than 64 are not used. Calls
 * of layer functions that run at the same time must not ask for more than 64 together: OpenBLAS has
 * no more places, and ends the process. In a child made by fork() after threads were used `threads`
 * must be 1: they don't survive there.
 *
 * Compatibility: within one NFD_ABI_VERSION names, signatures, structs and values stay; functions
 * and status values may be added. A program compiled with this header works with a library for
 * which nfd_abi_version() == NFD_ABI_VERSION.
 */
#ifndef NFD_FAST_NFD_H
#define NFD_FAST_NFD_H

#include <stdint.h>

#if defined(_WIN32)
#if defined(NFD_FAST_BUILDS_LIBRARY)
#define NFD_API __declspec(dllexport)
#else
#define NFD_API __declspec(dllimport)
#endif
#else
#define NFD_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
#define NFD_NOEXCEPT noexcept
extern "C" {
#else
#define NFD_NOEXCEPT
#endif

#define NFD_ABI_VERSION 1

/* The version of the library that was loaded. */
NFD_API int32_t nfd_abi_version(void) NFD_NOEXCEPT;

/* Statuses: name, value, text. */
#define NFD_STATUSES(X)                                                                       \
    X(NFD_SUCCESS, 0, "success")                                                              \
    X(NFD_UNKNOWN_STREAM, 1, "stream must be one of the Stream constants")                    \
    X(NFD_LAYER_OUT_OF_RANGE, 2, "layer must be in 1 ... 2**24")                              \
    X(NFD_NEURONS_OUT_OF_RANGE, 3,                                                            \
      "first and count must be nonnegative and end at most at neuron 2**32")                  \
    X(NFD_MISALIGNED_FIRST_NEURON, 4, "first must be a multiple of 4")                        \
    X(NFD_NO_OUTPUT, 5, "out must not be NULL")                                               \
    X(NFD_NO_SIZES, 6, "the struct of sizes must not be NULL")                                \
    X(NFD_NO_INPUT, 7, "an input array that has entries must not be NULL")                    \
    X(NFD_WIDTH_OUT_OF_RANGE, 8, "width must be in 1 ... 2**31 - 1")                          \
    X(NFD_DEPTH_OUT_OF_RANGE, 9, "depth must be at least 1")                                  \
    X(NFD_BATCH_OUT_OF_RANGE, 10, "batch must be in 0 ... 2**31 - 1")                         \
    X(NFD_COUNT_OUT_OF_RANGE, 11,                                                             \
      "image_count, direction_count and column_count must be nonnegative")                    \
    X(NFD_ARRAYS_TOO_LARGE, 12, "arrays of these sizes don't fit into the address space")     \
    X(NFD_UNKNOWN_ACTIVATION, 13, "activation must be a number that nfd_activation() gives")  \
    X(NFD_NOT_FINITE, 14, "factors, coefficients and sample weights must be finite")          \
    X(NFD_THREADS_OUT_OF_RANGE, 15, "threads must be at least 1")                             \
    X(NFD_OVERLAP, 16, "the output must not overlap an input; of a step it may be the state") \
    X(NFD_OUT_OF_MEMORY, 17, "there is no memory for the work; take a smaller batch")         \
    X(NFD_NO_INSTRUCTION_SET, 18,                                                             \
      "the environment variable NFD_FAST_ISA must name an instruction set of this processor " \
      "that the library was built for; unset it to choose")                                   \
    X(NFD_UNEXPECTED_ERROR, 19, "unexpected error: please report it")

typedef enum nfd_status {
#define NFD_STATUS_ENUMERATOR(name, value, text) name = value,
    NFD_STATUSES(NFD_STATUS_ENUMERATOR)
#undef NFD_STATUS_ENUMERATOR
} nfd_status;

/* What a status means, in words; for any number. The text is static. */
NFD_API const char* nfd_error_text(int32_t status) NFD_NOEXCEPT;

/* What noise is used for: the tag field of the Philox counter. */
typedef enum nfd_stream {
    NFD_STREAM_INPUT,
    NFD_STREAM_READOUT,
    NFD_STREAM_HIDDEN,
    NFD_STREAM_BACKWARD_HIDDEN,
    NFD_STREAM_FORWARD_NOISE,
    NFD_STREAM_BACKWARD_NOISE,
    NFD_STREAM_DATA,
    NFD_STREAM_SPARE
} nfd_stream;

/* The number of an activation of nfd_fast.ACTIVATIONS, e.g. "tanh"; -1 for an unknown name. */
NFD_API int32_t nfd_activation(const char* name) NFD_NOEXCEPT;

/* --- Noise ------------------------------------------------------------------------------------ */

/* Random words of `count` consecutive neurons from `first` (a multiple of 4) of one column of a
 * fine layer (counted from 1; 1 for input, readout and data), for a stream of nfd_stream, into
 * out (count). */
NFD_API int32_t nfd_words(uint64_t seed, int32_t stream, int64_t layer, uint32_t column,
                          int64_t first, int64_t count, uint32_t* out) NFD_NOEXCEPT;

/* The standard normal numbers made of these words. */
NFD_API int32_t nfd_normal_f32(uint64_t seed, int32_t stream, int64_t layer, uint32_t column,
                               int64_t first, int64_t count, float* out) NFD_NOEXCEPT;
NFD_API int32_t nfd_normal_f64(uint64_t seed, int32_t stream, int64_t layer, uint32_t column,
                               int64_t first, int64_t count, double* out) NFD_NOEXCEPT;

/* --- Hidden layers ---------------------------------------------------------------------------- */

/* A stack of hidden layers on one batch. */
typedef struct nfd_stack {
    int64_t width;        /* n, 1 ... 2^31 - 1 */
    int64_t depth;        /* L, at least 1 */
    int64_t batch;        /* B, 0 ... 2^31 - 1 */
    double branch_factor; /* beta, finite; nfd_sgd_update does not read it */
    int32_t activation;   /* phi, see nfd_activation() */
    int32_t skip;         /* 0: without skip connections; nfd_sgd_update does not read it */
} nfd_stack;

/* Features: H_l = H_{l-1} + (beta/sqrt(n)) W_l phi(H_{l-1}) for l = 1 ... L.
 * hidden (L, n, n), indexed [layer][out][in]; features (L+1, B, n), of which the caller has filled
 * H_0 and the rest is written. They must not overlap. */
NFD_API int32_t nfd_residual_forward_f32(const nfd_stack* stack, const float* hidden,
                                         float* features, int32_t threads) NFD_NOEXCEPT;
NFD_API int32_t nfd_residual_forward_f64(const nfd_stack* stack, const double* hidden,
                                         double* features, int32_t threads) NFD_NOEXCEPT;

/* Adjoints: G_{l-1} = G_l + (beta/sqrt(n)) phi'(H_{l-1}) o (W_l^T G_l) for l = L ... 1.
 * hidden (L, n, n); features (L+1, B, n); adjoints (L+1, B, n), of which the caller has filled G_L,
 * the last, and the rest is written. It must not overlap the others. */
NFD_API int32_t nfd_residual_backward_f32(const nfd_stack* stack, const float* hidden,
                                          const float* features, float* adjoints,
                                          int32_t threads) NFD_NOEXCEPT;
NFD_API int32_t nfd_residual_backward_f64(const nfd_stack* stack, const double* hidden,
                                          const double* features, double* adjoints,
                                          int32_t threads) NFD_NOEXCEPT;

/* Update: W_l -= (step/sqrt(n)) sum_b w_b G_l[b] phi(H_{l-1}[b])^T for l = 1 ... L.
 * features and adjoints (L+1, B, n); sample_weights (B), w, finite; step = eta beta m, finite;
 * hidden (L, n, n) is changed and must not overlap the others. */
NFD_API int32_t nfd_sgd_update_f32(const nfd_stack* stack, const float* features,
                                   const float* adjoints, const double* sample_weights, double step,
                                   float* hidden, int32_t threads) NFD_NOEXCEPT;
NFD_API int32_t nfd_sgd_update_f64(const nfd_stack* stack, const double* features,
                                   const double* adjoints, const double* sample_weights,
                                   double step, double* hidden, int32_t threads) NFD_NOEXCEPT;

/* --- A layer without its matrix --------------------------------------------------------------- */

/* Sizes and noise of one step of the conditional representation. */
typedef struct nfd_step {
    int64_t width;           /* n, 1 ... 2^31 - 1 */
    int64_t batch;           /* B, 0 ... 2^31 - 1 */
    int64_t image_count;     /* p, at least 0 */
    int64_t direction_count; /* q, at least 0 */
    int64_t column_count;    /* m, at least 0 */
    uint64_t seed;           /* of the noise */
    int64_t layer;           /* the fine layer, 1 ... 2^24 */
    int32_t stream;          /* of nfd_stream, e.g. NFD_STREAM_FORWARD_NOISE */
} nfd_step;

/* out[b] = state[b] + sum_i images[i] image_coefficients[i][b]
 *                   + sum_j directions[j] direction_coefficients[j][b]
 *                   + sum_c Xi_c noise_coefficients[c][b],
 * Xi_c the normal numbers of column columns[c], which are never stored.
 * state and out (B, n); images (p, n), directions (q, n); their coefficients (p, B) and (q, B);
 * columns (m); noise_coefficients (m, B). Coefficients are finite, and rounded to the type of the
 * state. out may be state; it must not overlap it in part, nor anything else. */
NFD_API int32_t nfd_euler_maruyama_step_f32(
    const nfd_step* step, const float* state, const float* images, const double* image_coefficients,
    const float* directions, const double* direction_coefficients, const uint32_t* columns,
    const double* noise_coefficients, float* out, int32_t threads) NFD_NOEXCEPT;
NFD_API int32_t nfd_euler_maruyama_step_f64(const nfd_step* step, const double* state,
                                            const double* images, const double* image_coefficients,
                                            const double* directions,
                                            const double* direction_coefficients,
                                            const uint32_t* columns,
                                            const double* noise_coefficients, double* out,
                                            int32_t threads) NFD_NOEXCEPT;

#ifdef __cplusplus
}
#endif

#endif
