/* A step of gradient descent on the hidden weights of a network. */
#include <nfd_fast/nfd.h>
#include <stdio.h>
#include <stdlib.h>

enum { WIDTH = 100, DEPTH = 3, BATCH = 2, THREADS = 2 };

static float hidden[DEPTH][WIDTH][WIDTH];
static float features[DEPTH + 1][BATCH][WIDTH];
static float adjoints[DEPTH + 1][BATCH][WIDTH];

static void check(int32_t status) {
    if (status == NFD_SUCCESS) return;
    fprintf(stderr, "nfd_fast: %s\n", nfd_error_text(status));
    exit(1);
}

static void print(const float* values, int count) {
    for (int i = 0; i < count; ++i) printf("%a\n", values[i]);
}

int main(void) {
    if (nfd_abi_version() != NFD_ABI_VERSION) return 2;
    const uint64_t seed = 7;
    for (int b = 0; b < BATCH; ++b) {
        check(nfd_normal_f32(seed, NFD_STREAM_INPUT, 1, b, 0, WIDTH, features[0][b]));
        check(nfd_normal_f32(seed, NFD_STREAM_READOUT, 1, 0, 0, WIDTH, adjoints[DEPTH][b]));
    }
    /* Column j of the noise is what input j of a layer sends to all neurons. */
    for (int layer = 0; layer < DEPTH; ++layer) {
        for (int j = 0; j < WIDTH; ++j) {
            float column[WIDTH];
            check(nfd_normal_f32(seed, NFD_STREAM_HIDDEN, layer + 1, j, 0, WIDTH, column));
            for (int i = 0; i < WIDTH; ++i) hidden[layer][i][j] = column[i];
        }
    }

    const nfd_stack stack = {
        .width = WIDTH,
        .depth = DEPTH,
        .batch = BATCH,
        .branch_factor = 0.5,
        .activation = nfd_activation("tanh"),
        .skip = 1,
    };
    const double residuals[BATCH] = {1.0, -0.5};
    check(nfd_residual_forward_f32(&stack, &hidden[0][0][0], &features[0][0][0], THREADS));
    check(nfd_residual_backward_f32(&stack, &hidden[0][0][0], &features[0][0][0],
                                    &adjoints[0][0][0], THREADS));
    check(nfd_sgd_update_f32(&stack, &features[0][0][0], &adjoints[0][0][0], residuals,
                             0.1 * stack.branch_factor / BATCH, &hidden[0][0][0], THREADS));

    print(features[DEPTH][0], BATCH * WIDTH);
    print(adjoints[0][0], BATCH * WIDTH);
    print(hidden[0][0], DEPTH * WIDTH * WIDTH);

    check(nfd_residual_forward_f32(&stack, NULL, &features[0][0][0], THREADS)); /* exits with 1 */
    return 0;
}
