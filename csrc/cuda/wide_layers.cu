#include <algorithm>
#include <cmath>

#include "cuda/activate.hpp"
#include "cuda/wide_layers.hpp"

namespace nfd_fast::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMostRows = 65535;  // blocks of a grid in its second dimension
constexpr std::int64_t kSamples = 4;       // whose loads a thread has on their way together

// use(b, place in a layer, load(place)) for every number of a layer.
template <class Load, class Use>
__device__ inline void for_layer(const LayerStack& s, Load load, Use use) {
    const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= s.width) return;
    for (std::int64_t first = blockIdx.y; first * kSamples < s.batch; first += gridDim.y) {
        const std::int64_t at = first * kSamples * s.width + i;
        const std::int64_t count = at_most(s.batch - first * kSamples, kSamples);
        decltype(load(at)) held[kSamples];
        NFD_FAST_UNROLL
        for (std::int64_t b = 0; b < kSamples; ++b) {
            held[b] = load(at + (b < count ? b : 0) * s.width);
        }
        NFD_FAST_UNROLL
        for (std::int64_t b = 0; b < kSamples; ++b) {
            if (b < count) use(first * kSamples + b, at + b * s.width, held[b]);
        }
    }
}

template <class... Parameters, class... Arguments>
void launch_for_layer(void (*kernel)(LayerStack, Parameters...), const LayerStack& s,
                      cudaStream_t stream, Arguments... arguments) {
    const dim3 grid(
        static_cast<unsigned>((s.width + kThreads - 1) / kThreads),
        static_cast<unsigned>(std::min((s.batch + kSamples - 1) / kSamples, kMostRows)));
    launch(kernel, grid, kThreads, 0, stream, false, s, arguments...);
}

// What follows the product of a layer, or comes before that of the first: phi, and what the skip of
// the next layer starts from. Null for what isn't wanted.
template <class T>
__global__ void __launch_bounds__(kThreads)
    activate_layer(LayerStack s, const T* layer, int step, T* activations, T* next, int* bad_step) {
    for_layer(
        s, [&](std::int64_t at) { return layer[at]; },
        [&](std::int64_t, std::int64_t at, T x) {
            if (bad_step) note_unless_finite(x, step, bad_step);
            if (activations) activations[at] = activate(s.activation, x);
            if (next) next[at] = x;
        });
}

// What a matrix moves by is a product of weighted adjoints with activations. Those of a replica
// that has diverged vanish, as its weights may be the caller's.
template <class T>
struct Step {
    const double* weights;  // w_b
    double step;            // eta beta m/sqrt(n), or 0 if nothing moves
    T* weighted;
    T* activations;  // of the layer below

    __device__ void put(std::int64_t b, std::int64_t at, T adjoint, const int* bad_step) const {
        if (!weighted) return;
        // This one may be the first that isn't finite.
        if (*bad_step == kNoBadStep && adjoint - adjoint == T(0)) {
            weighted[at] = static_cast<T>(-step * weights[b]) * adjoint;
        } else {
            weighted[at] = activations[at] = T(0);
        }
    }
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    weigh_layer(LayerStack s, const T* adjoints, Step<T> step, const int* bad_step) {
    for_layer(
        s, [&](std::int64_t at) { return adjoints[at]; },
        [&](std::int64_t b, std::int64_t at, T adjoint) { step.put(b, at, adjoint, bad_step); });
}

// G_{l-1} = G_l + beta phi'(H_{l-1}) product/sqrt(n).
template <class T>
__global__ void __launch_bounds__(kThreads)
    finish_adjoints(LayerStack s, const T* above, const T* features, const T* products, T scale,
                    const T* entering, int bad, T* below, Step<T> step, int* bad_step) {
    struct Held {
        T above, feature, product, entering;
    };
    const auto load = [&](std::int64_t at) {
        return Held{above[at], features[at], products[at], entering ? entering[at] : T(0)};
    };
    for_layer(s, load, [&](std::int64_t b, std::int64_t at, const Held& held) {
        const T slope = scale * differentiate(s.activation, held.feature);
        T value =
            s.skip ? fused_multiply_add(slope, held.product, held.above) : slope * held.product;
        if (entering) value += held.entering;
        below[at] = value;
        step.put(b, at, value, bad_step);
        note_unless_finite(value, bad, bad_step);
    });
}

template <class T>
T branch_scale(const LayerStack& s) {
    return static_cast<T>(s.branch_factor / std::sqrt(static_cast<double>(s.width)));
}

}  // namespace

template <class T>
void WideLayers<T>::lay_out(const LayerStack& s, Arena& arena, bool moving) {
    const double layer = static_cast<double>(s.batch) * static_cast<double>(s.width);
    arena.take(activations_, static_cast<double>(s.depth) * layer);
    arena.take(products_, layer);
    arena.take(weighted_, kWeighted * layer);
    const double workspace = static_cast<double>(Cublas::kWorkspace + Cublas::kAlignment);
    arena.take(workspace_, workspace);
    arena.take(beside_workspace_, moving ? workspace : 0);
}

template <class T>
void WideLayers<T>::prepare(const Wave<T>& wave) {
    if (library_) return;
    const auto aligned = [](unsigned char* workspace) {
        const auto address = reinterpret_cast<std::uintptr_t>(workspace) + Cublas::kAlignment - 1;
        return reinterpret_cast<void*>(address / Cublas::kAlignment * Cublas::kAlignment);
    };
    library_ = std::make_shared<Library>(wave.stream, aligned(workspace_));
    if (beside_workspace_) library_->beside.emplace(aligned(beside_workspace_));
}

template <class T>
void WideLayers<T>::forward(const LayerStack& s, const Wave<T>& wave, const T* hidden) const {
    const std::int64_t n = s.width, size = s.layer_size();
    const auto activate = [&](std::int64_t l) {
        T* layer = wave.features + l * size;
        launch_for_layer(activate_layer<T>, s, wave.stream, layer, static_cast<int>(l),
                         l < s.depth ? activations_ + l * size : nullptr,
                         l < s.depth && s.skip ? layer + size : nullptr, wave.bad_step);
    };
    activate(0);  // while the graph is on its way
    library_->forward.run(wave.stream, [&] {
        for (std::int64_t l = 1; l <= s.depth; ++l) {
            library_->cublas.multiply(Transpose::no, Transpose::yes, s.batch, n, n,
                                      branch_scale<T>(s), activations_ + (l - 1) * size, n,
                                      hidden + (l - 1) * s.matrix_size(), n, T(s.skip ? 1 : 0),
                                      wave.features + l * size, n);
            activate(l);
        }
    });
}

template <class T>
void WideLayers<T>::backward(const LayerStack& s, const Wave<T>& wave, T* hidden,
                             T* backward_hidden, bool all_adjoints, bool update,
                             double step) const {
    const std::int64_t n = s.width, size = s.layer_size();
    const AdjointStore<T> adjoints{wave.adjoints, all_adjoints, wave.sources};
    // Of the matrix between layers l and l-1; layer 0 has none below.
    const auto step_of = [&](std::int64_t l) {
        const bool wanted = update && l > 0;
        return Step<T>{wave.weights, step / std::sqrt(static_cast<double>(n)),
                       wanted ? weighted(s, l) : nullptr,
                       wanted ? activations_ + (l - 1) * size : nullptr};
    };
    if (update) {  // while the graph is on its way
        launch_for_layer(weigh_layer<T>, s, wave.stream, adjoints.layer(s, s.depth),
                         step_of(s.depth), wave.bad_step);
    }
    library_->backward.run(wave.stream, [&] {
        for (std::int64_t l = s.depth; l >= 1; --l) {
            const std::int64_t matrix = (l - 1) * s.matrix_size();
            const T* above = adjoints.layer(s, l);
            library_->cublas.multiply(Transpose::no, Transpose::no, s.batch, n, n, T(1), above, n,
                                      backward_hidden + matrix, n, T(0), products_, n);
            if (update) {
                Beside& beside = *library_->beside;
                beside.multiplied.record(wave.stream);
                beside.multiplied.hold(beside.stream.get());
                move(s, beside.cublas, l, hidden);
                if (backward_hidden != hidden) move(s, beside.cublas, l, backward_hidden);
                beside.moved[l % kWeighted].record(beside.stream.get());
                // The weighted adjoints of layer l-1 come in the place of those of `before`.
                const std::int64_t before = l - 1 + kWeighted;
                if (before <= s.depth) beside.moved[before % kWeighted].hold(wave.stream);
            }
            launch_for_layer(finish_adjoints<T>, s, wave.stream, above,
                             wave.features + (l - 1) * size, products_, branch_scale<T>(s),
                             adjoints.entering(s, l - 1), static_cast<int>(s.depth - (l - 1)),
                             adjoints.layer(s, l - 1), step_of(l - 1), wave.bad_step);
        }
        if (update) library_->beside->moved[1 % kWeighted].hold(wave.stream);
    });
}

template <class T>
void WideLayers<T>::update(const LayerStack& s, const Wave<T>& wave, T* hidden, double step) const {
    const std::int64_t size = s.layer_size();
    for (std::int64_t l = s.depth; l >= 1; --l) {
        T* activations = activations_ + (l - 1) * size;
        const Step<T> of_layer{wave.weights, step / std::sqrt(static_cast<double>(s.width)),
                               weighted(s, l), activations};
        launch_for_layer(activate_layer<T>, s, wave.stream, wave.features + (l - 1) * size, 0,
                         activations, nullptr, nullptr);
        launch_for_layer(weigh_layer<T>, s, wave.stream, wave.adjoints + l * size, of_layer,
                         wave.bad_step);
        move(s, library_->cublas, l, hidden);
    }
}

// W_l += weighted^T activations.
template <class T>
void WideLayers<T>::move(const LayerStack& s, const Cublas& cublas, std::int64_t l,
                         T* matrices) const {
    const std::int64_t n = s.width, size = s.layer_size();
    cublas.multiply(Transpose::yes, Transpose::no, n, n, s.batch, T(1), weighted(s, l), n,
                    activations_ + (l - 1) * size, n, T(1), matrices + (l - 1) * s.matrix_size(),
                    n);
}

template class WideLayers<float>;
template class WideLayers<double>;

}  // namespace nfd_fast::cuda
