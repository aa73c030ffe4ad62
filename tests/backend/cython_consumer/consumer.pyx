# A compiled tool of somebody else's, using nfd_fast without Python or the GIL.
from libc.stdint cimport uint32_t, uint64_t

from nfd_fast.cython_api cimport (
    STREAM_FORWARD_NOISE,
    STREAM_HIDDEN,
    Stream,
    nfd_abi_version,
    nfd_activation,
    nfd_error_text,
    nfd_euler_maruyama_step_f32,
    nfd_euler_maruyama_step_f64,
    nfd_normal_f32,
    nfd_normal_f64,
    nfd_residual_backward_f32,
    nfd_residual_backward_f64,
    nfd_residual_forward_f32,
    nfd_residual_forward_f64,
    nfd_sgd_update_f32,
    nfd_sgd_update_f64,
    nfd_stack,
    nfd_step,
    nfd_words,
)

ctypedef fused real:
    float
    double


def abi_version():
    return nfd_abi_version()


def activation(name):
    return nfd_activation(name.encode())


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


def descend(real[:, :, ::1] hidden, real[:, :, ::1] features, real[:, :, ::1] adjoints,
            double[::1] sample_weights, double branch_factor, double step, int threads):
    """Pass forward and backward through a tanh network and move its weights, all in place."""
    cdef nfd_stack stack
    cdef int status
    stack.depth = hidden.shape[0]
    stack.batch = features.shape[1]
    stack.width = features.shape[2]
    stack.branch_factor = branch_factor
    stack.activation = nfd_activation("tanh")
    stack.skip = 1
    with nogil:
        if real is float:
            status = nfd_residual_forward_f32(&stack, &hidden[0, 0, 0], &features[0, 0, 0],
                                              threads)
            if status == 0:
                status = nfd_residual_backward_f32(&stack, &hidden[0, 0, 0], &features[0, 0, 0],
                                                   &adjoints[0, 0, 0], threads)
            if status == 0:
                status = nfd_sgd_update_f32(&stack, &features[0, 0, 0], &adjoints[0, 0, 0],
                                            &sample_weights[0], step, &hidden[0, 0, 0], threads)
        else:
            status = nfd_residual_forward_f64(&stack, &hidden[0, 0, 0], &features[0, 0, 0],
                                              threads)
            if status == 0:
                status = nfd_residual_backward_f64(&stack, &hidden[0, 0, 0], &features[0, 0, 0],
                                                   &adjoints[0, 0, 0], threads)
            if status == 0:
                status = nfd_sgd_update_f64(&stack, &features[0, 0, 0], &adjoints[0, 0, 0],
                                            &sample_weights[0], step, &hidden[0, 0, 0], threads)
    return nfd_error_text(status).decode()


def next_layer(real[:, ::1] state, real[:, ::1] images, double[:, ::1] image_coefficients,
               uint32_t[::1] columns, double[:, ::1] noise_coefficients, uint64_t seed, long layer,
               int threads):
    """Replace the state by that of the next layer, without a matrix."""
    cdef nfd_step step
    cdef int status
    step.batch = state.shape[0]
    step.width = state.shape[1]
    step.image_count = images.shape[0]
    step.direction_count = 0
    step.column_count = columns.shape[0]
    step.seed = seed
    step.layer = layer
    step.stream = STREAM_FORWARD_NOISE
    with nogil:
        if real is float:
            status = nfd_euler_maruyama_step_f32(
                &step, &state[0, 0], &images[0, 0], &image_coefficients[0, 0], NULL, NULL,
                &columns[0], &noise_coefficients[0, 0], &state[0, 0], threads)
        else:
            status = nfd_euler_maruyama_step_f64(
                &step, &state[0, 0], &images[0, 0], &image_coefficients[0, 0], NULL, NULL,
                &columns[0], &noise_coefficients[0, 0], &state[0, 0], threads)
    return nfd_error_text(status).decode()


def without_sizes():
    """Return what every function says that is given NULL for everything."""
    statuses = [
        nfd_residual_forward_f32(NULL, NULL, NULL, 1),
        nfd_residual_forward_f64(NULL, NULL, NULL, 1),
        nfd_residual_backward_f32(NULL, NULL, NULL, NULL, 1),
        nfd_residual_backward_f64(NULL, NULL, NULL, NULL, 1),
        nfd_sgd_update_f32(NULL, NULL, NULL, NULL, 0.0, NULL, 1),
        nfd_sgd_update_f64(NULL, NULL, NULL, NULL, 0.0, NULL, 1),
        nfd_euler_maruyama_step_f32(NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 1),
        nfd_euler_maruyama_step_f64(NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 1),
    ]
    return {nfd_error_text(status).decode() for status in statuses}
