#include "cuda/device.hpp"
#include "cuda/devices.hpp"
#include "cuda/layers.hpp"
#include "cuda/narrow_layers.hpp"
#include "cuda/wave.hpp"
#include "cuda/wide_layers.hpp"
#include "training/arena.hpp"

namespace nfd_fast::cuda {
namespace {

// What the layers of one network need besides its arrays.
template <class T>
struct Scratch {
    NarrowLayers<T> narrow;
    WideLayers<T> wide;
    int* bad_step;

    double lay_out(const LayerStack& s, unsigned char* base) {
        Arena arena(base);
        arena.take(bad_step, 1);
        if (is_narrow(s)) {
            narrow.lay_out(s, arena, 1);
        } else {
            wide.lay_out(s, arena, false);
        }
        return arena.used();
    }
};

// Calls work(layers, wave) with the layers that suit the stack and a wave of one replica, in which
// the caller fills in what it has.
template <class T, class Work>
void run_layers(const LayerStack& s, Wave<T> wave, cudaStream_t stream, Work work) {
    if (s.layer_size() == 0) return;
    Scratch<T> scratch{};
    const StreamMemory memory(static_cast<std::size_t>(scratch.lay_out(s, nullptr)), stream);
    scratch.lay_out(s, memory.as<unsigned char>());
    to_device(scratch.bad_step, &kNoBadStep, sizeof kNoBadStep, stream);
    wave.count = 1;
    wave.stream = stream;
    wave.bad_step = scratch.bad_step;
    if (is_narrow(s)) {
        scratch.narrow.prepare(s, wave);
        work(scratch.narrow, wave);
    } else {
        scratch.wide.prepare(wave);
        work(scratch.wide, wave);
    }
}

}  // namespace

template <class T>
void run_forward(const LayerStack& s, const T* hidden, T* features, cudaStream_t stream) {
    Wave<T> wave{};
    wave.features = features;
    run_layers(s, wave, stream,
               [&](const auto& layers, const Wave<T>& there) { layers.forward(s, there, hidden); });
}

template <class T>
void run_backward(const LayerStack& s, const T* hidden, const T* features,
                  const AdjointStore<T>& adjoints, cudaStream_t stream) {
    Wave<T> wave{};
    wave.features = const_cast<T*>(features);
    wave.adjoints = adjoints.data;
    wave.sources = adjoints.sources;
    T* matrices = const_cast<T*>(hidden);  // only read where nothing moves
    run_layers(s, wave, stream, [&](const auto& layers, const Wave<T>& there) {
        layers.backward(s, there, matrices, matrices, true, false, 0);
    });
}

template <class T>
void run_update(const LayerStack& s, const T* features, const T* adjoints,
                const double* sample_weights, double step, T* hidden, cudaStream_t stream) {
    Wave<T> wave{};
    wave.features = const_cast<T*>(features);
    wave.adjoints = const_cast<T*>(adjoints);
    wave.weights = sample_weights;
    run_layers(s, wave, stream, [&](const auto& layers, const Wave<T>& there) {
        layers.update(s, there, hidden, step);
    });
}

#define NFD_FAST_INSTANTIATE(T)                                                                   \
    template void run_forward<T>(const LayerStack&, const T*, T*, cudaStream_t);                  \
    template void run_backward<T>(const LayerStack&, const T*, const T*, const AdjointStore<T>&,  \
                                  cudaStream_t);                                                  \
    template void run_update<T>(const LayerStack&, const T*, const T*, const double*, double, T*, \
                                cudaStream_t);
NFD_FAST_INSTANTIATE(float)
NFD_FAST_INSTANTIATE(double)
#undef NFD_FAST_INSTANTIATE

}  // namespace nfd_fast::cuda
