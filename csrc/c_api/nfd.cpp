// The C interface: checks arguments, calls what csrc/cpu has, and turns exceptions into statuses.

#include "nfd_fast/nfd.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <initializer_list>
#include <limits>
#include <new>
#include <stdexcept>
#include <string_view>

#include "cpu/blas.hpp"
#include "cpu/euler_maruyama.hpp"
#include "cpu/kernels.hpp"
#include "cpu/layers.hpp"
#include "nfd_fast/activations.hpp"

namespace nfd_fast {
namespace {

// The header repeats the table of streams for C.
static_assert(static_cast<int>(Stream::input) == NFD_STREAM_INPUT);
static_assert(static_cast<int>(Stream::readout) == NFD_STREAM_READOUT);
static_assert(static_cast<int>(Stream::hidden) == NFD_STREAM_HIDDEN);
static_assert(static_cast<int>(Stream::backward_hidden) == NFD_STREAM_BACKWARD_HIDDEN);
static_assert(static_cast<int>(Stream::forward_noise) == NFD_STREAM_FORWARD_NOISE);
static_assert(static_cast<int>(Stream::backward_noise) == NFD_STREAM_BACKWARD_NOISE);
static_assert(static_cast<int>(Stream::data) == NFD_STREAM_DATA);
static_assert(static_cast<int>(Stream::spare) == NFD_STREAM_SPARE);

constexpr std::int64_t kMostNoiseLayers = std::int64_t{1} << 24;
constexpr std::int64_t kMostNoiseNeurons = std::int64_t{1} << 32;
constexpr std::int64_t kMostOfBlas = std::numeric_limits<int>::max();  // which counts in int
constexpr std::int64_t kMostBytes = std::numeric_limits<std::ptrdiff_t>::max();

// A C caller has no way to ask for an end.
class Uninterrupted final : public Monitor {
  public:
    Uninterrupted() : Monitor(1) {}

  protected:
    bool go_on(std::int64_t, std::int64_t) override { return true; }
};

// The one way out: f throws a status for a wrong argument, and nothing after it began to write.
template <class F>
std::int32_t guarded(F f) noexcept {
    try {
        f();
        return NFD_SUCCESS;
    } catch (const nfd_status status) {
        return status;
    } catch (const std::bad_alloc&) {
        return NFD_OUT_OF_MEMORY;
    } catch (const std::length_error&) {  // scratch that no vector can hold
        return NFD_OUT_OF_MEMORY;
    } catch (...) {
        return NFD_UNEXPECTED_ERROR;
    }
}

void require(bool holds, nfd_status otherwise) {
    if (!holds) throw otherwise;
}

bool within(std::int64_t value, std::int64_t low, std::int64_t high) {
    return low <= value && value <= high;
}

const KernelTable& chosen_kernels() {
    try {
        return kernels();
    } catch (const std::runtime_error&) {
        throw NFD_NO_INSTRUCTION_SET;
    }
}

// The bytes of an array.
struct Extent {
    std::uintptr_t begin = 0, end = 0;

    template <class Element>
    Extent(const Element* array, std::initializer_list<std::int64_t> shape, nfd_status if_missing) {
        double bytes = sizeof(Element);
        for (const std::int64_t length : shape) bytes *= static_cast<double>(length);
        require(bytes < static_cast<double>(kMostBytes), NFD_ARRAYS_TOO_LARGE);
        if (bytes == 0) return;
        require(array != nullptr, if_missing);
        begin = reinterpret_cast<std::uintptr_t>(array);
        end = begin + static_cast<std::uintptr_t>(bytes);
    }

    bool overlaps(const Extent& other) const { return begin < other.end && other.begin < end; }
};

template <class Element>
Extent input(const Element* array, std::initializer_list<std::int64_t> shape) {
    return {array, shape, NFD_NO_INPUT};
}

template <class Element>
Extent output(const Element* array, std::initializer_list<std::int64_t> shape) {
    return {array, shape, NFD_NO_OUTPUT};
}

void require_apart(const Extent& out, std::initializer_list<Extent> inputs) {
    for (const Extent& each : inputs) require(!out.overlaps(each), NFD_OVERLAP);
}

void require_finite(const double* values, std::int64_t count) {
    const bool finite =
        std::all_of(values, values + count, [](double x) { return std::isfinite(x); });
    require(finite, NFD_NOT_FINITE);
}

// --- Noise ---------------------------------------------------------------------------------------

NoiseAddress checked_address(std::uint64_t seed, std::int32_t stream, std::int64_t layer) {
    require(within(stream, NFD_STREAM_INPUT, NFD_STREAM_SPARE), NFD_UNKNOWN_STREAM);
    require(within(layer, 1, kMostNoiseLayers), NFD_LAYER_OUT_OF_RANGE);
    return noise_address(seed, static_cast<Stream>(stream), layer);
}

void check_neurons(std::int64_t first, std::int64_t count, const void* out) {
    // Compared without adding: first + count may not fit.
    require(within(count, 0, kMostNoiseNeurons) && within(first, 0, kMostNoiseNeurons - count),
            NFD_NEURONS_OUT_OF_RANGE);
    require(first % 4 == 0, NFD_MISALIGNED_FIRST_NEURON);
    require(out != nullptr || count == 0, NFD_NO_OUTPUT);
}

template <class T>
std::int32_t normal(std::uint64_t seed, std::int32_t stream, std::int64_t layer,
                    std::uint32_t column, std::int64_t first, std::int64_t count, T* out) noexcept {
    return guarded([=] {
        const NoiseAddress address = checked_address(seed, stream, layer);
        check_neurons(first, count, out);
        chosen_kernels().of<T>().normal_neurons(address, column, first, count, out);
    });
}

// --- Hidden layers -------------------------------------------------------------------------------

void check_batch(std::int64_t width, std::int64_t batch) {
    require(within(width, 1, kMostOfBlas), NFD_WIDTH_OUT_OF_RANGE);
    require(within(batch, 0, kMostOfBlas), NFD_BATCH_OUT_OF_RANGE);
}

int checked_threads(std::int32_t threads) {
    require(threads >= 1, NFD_THREADS_OUT_OF_RANGE);
    return std::min(threads, blas::kMostCallers);
}

LayerStack checked_stack(const nfd_stack* given) {
    require(given != nullptr, NFD_NO_SIZES);
    check_batch(given->width, given->batch);
    require(within(given->depth, 1, kMostBytes - 1), NFD_DEPTH_OUT_OF_RANGE);
    require(within(given->activation, 0, activation_count - 1), NFD_UNKNOWN_ACTIVATION);
    return {given->width,         given->depth,     given->batch,
            given->branch_factor, given->skip != 0, given->activation};
}

template <class T>
std::int32_t forward(const nfd_stack* given, const T* hidden, T* features,
                     std::int32_t threads) noexcept {
    return guarded([=] {
        const LayerStack stack = checked_stack(given);
        const std::int64_t n = stack.width, depth = stack.depth, batch = stack.batch;
        require_finite(&stack.branch_factor, 1);
        const int members = checked_threads(threads);
        const Extent in = input(hidden, {depth, n, n});
        require_apart(output(features, {depth + 1, batch, n}), {in});
        if (batch == 0) return;
        chosen_kernels();
        Uninterrupted monitor;
        run_forward(stack, hidden, features, members, monitor);
    });
}

template <class T>
std::int32_t backward(const nfd_stack* given, const T* hidden, const T* features, T* adjoints,
                      std::int32_t threads) noexcept {
    return guarded([=] {
        const LayerStack stack = checked_stack(given);
        const std::int64_t n = stack.width, depth = stack.depth, batch = stack.batch;
        require_finite(&stack.branch_factor, 1);
        const int members = checked_threads(threads);
        const Extent matrices = input(hidden, {depth, n, n});
        const Extent layers = input(features, {depth + 1, batch, n});
        require_apart(output(adjoints, {depth + 1, batch, n}), {matrices, layers});
        if (batch == 0) return;
        chosen_kernels();
        Uninterrupted monitor;
        run_backward(stack, hidden, features, AdjointStore<T>{adjoints, true}, members, monitor);
    });
}

template <class T>
std::int32_t update(const nfd_stack* given, const T* features, const T* adjoints,
                    const double* sample_weights, double step, T* hidden,
                    std::int32_t threads) noexcept {
    return guarded([=] {
        const LayerStack stack = checked_stack(given);
        const std::int64_t n = stack.width, depth = stack.depth, batch = stack.batch;
        require_finite(&step, 1);
        const int members = checked_threads(threads);
        const Extent layers = input(features, {depth + 1, batch, n});
        const Extent above = input(adjoints, {depth + 1, batch, n});
        const Extent weights = input(sample_weights, {batch});
        require_apart(output(hidden, {depth, n, n}), {layers, above, weights});
        require_finite(sample_weights, batch);
        if (batch == 0) return;
        chosen_kernels();
        Uninterrupted monitor;
        run_update(stack, features, adjoints,
                   HiddenUpdate<T>{hidden, nullptr, sample_weights, step}, members, monitor);
    });
}

// --- A layer without its matrix ------------------------------------------------------------------

template <class T>
std::int32_t euler_maruyama(const nfd_step* given, const T* state, const T* images,
                            const double* image_coefficients, const T* directions,
                            const double* direction_coefficients, const std::uint32_t* columns,
                            const double* noise_coefficients, T* out,
                            std::int32_t threads) noexcept {
    return guarded([=] {
        require(given != nullptr, NFD_NO_SIZES);
        const std::int64_t n = given->width, batch = given->batch;
        check_batch(n, batch);
        const std::int64_t p = given->image_count, q = given->direction_count;
        const std::int64_t m = given->column_count;
        require(p >= 0 && q >= 0 && m >= 0, NFD_COUNT_OUT_OF_RANGE);
        const NoiseAddress noise = checked_address(given->seed, given->stream, given->layer);
        const int members = checked_threads(threads);

        const Extent before = input(state, {batch, n});
        const std::initializer_list<Extent> others = {
            input(images, {p, n}),     input(image_coefficients, {p, batch}),
            input(directions, {q, n}), input(direction_coefficients, {q, batch}),
            input(columns, {m}),       input(noise_coefficients, {m, batch})};
        const Extent after = output(out, {batch, n});
        require(out == state || !after.overlaps(before), NFD_OVERLAP);
        require_apart(after, others);
        require_finite(image_coefficients, p * batch);
        require_finite(direction_coefficients, q * batch);
        require_finite(noise_coefficients, m * batch);
        if (batch == 0) return;
        chosen_kernels();
        Uninterrupted monitor;
        const EulerMaruyamaStep<T> step{n,
                                        batch,
                                        state,
                                        p,
                                        images,
                                        image_coefficients,
                                        q,
                                        directions,
                                        direction_coefficients,
                                        noise,
                                        m,
                                        columns,
                                        noise_coefficients};
        euler_maruyama_step(step, out, members, monitor);
    });
}

}  // namespace
}  // namespace nfd_fast

int32_t nfd_abi_version(void) noexcept { return NFD_ABI_VERSION; }

const char* nfd_error_text(int32_t status) noexcept {
    switch (status) {
#define NFD_STATUS_CASE(name, value, text) \
    case value:                            \
        return text;
        NFD_STATUSES(NFD_STATUS_CASE)
#undef NFD_STATUS_CASE
    }
    return "unknown status";
}

int32_t nfd_activation(const char* name) noexcept {
    for (const auto& row : nfd_fast::activation_table) {
        if (name && row.name == name) return static_cast<int32_t>(row.activation);
    }
    return -1;
}

int32_t nfd_words(uint64_t seed, int32_t stream, int64_t layer, uint32_t column, int64_t first,
                  int64_t count, uint32_t* out) noexcept {
    using namespace nfd_fast;
    return guarded([=] {
        const NoiseAddress address = checked_address(seed, stream, layer);
        check_neurons(first, count, out);
        chosen_kernels().words(address, column, first, count, out);
    });
}

#define NFD_DEFINE(T, suffix)                                                                      \
    int32_t nfd_normal_##suffix(uint64_t seed, int32_t stream, int64_t layer, uint32_t column,     \
                                int64_t first, int64_t count, T* out) noexcept {                   \
        return nfd_fast::normal(seed, stream, layer, column, first, count, out);                   \
    }                                                                                              \
    int32_t nfd_residual_forward_##suffix(const nfd_stack* stack, const T* hidden, T* features,    \
                                          int32_t threads) noexcept {                              \
        return nfd_fast::forward(stack, hidden, features, threads);                                \
    }                                                                                              \
    int32_t nfd_residual_backward_##suffix(const nfd_stack* stack, const T* hidden,                \
                                           const T* features, T* adjoints,                         \
                                           int32_t threads) noexcept {                             \
        return nfd_fast::backward(stack, hidden, features, adjoints, threads);                     \
    }                                                                                              \
    int32_t nfd_sgd_update_##suffix(const nfd_stack* stack, const T* features, const T* adjoints,  \
                                    const double* sample_weights, double step, T* hidden,          \
                                    int32_t threads) noexcept {                                    \
        return nfd_fast::update(stack, features, adjoints, sample_weights, step, hidden, threads); \
    }                                                                                              \
    int32_t nfd_euler_maruyama_step_##suffix(                                                      \
        const nfd_step* step, const T* state, const T* images, const double* image_coefficients,   \
        const T* directions, const double* direction_coefficients, const uint32_t* columns,        \
        const double* noise_coefficients, T* out, int32_t threads) noexcept {                      \
        return nfd_fast::euler_maruyama(step, state, images, image_coefficients, directions,       \
                                        direction_coefficients, columns, noise_coefficients, out,  \
                                        threads);                                                  \
    }
NFD_DEFINE(float, f32)
NFD_DEFINE(double, f64)
#undef NFD_DEFINE
