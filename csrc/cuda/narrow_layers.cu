#include <algorithm>
#include <cmath>

#include "cuda/barrier.hpp"
#include "cuda/narrow_layers.hpp"
#include "cuda/narrow_strip.hpp"

namespace nfd_fast::cuda {
namespace {

using namespace narrow;

template <class T>
__device__ inline int strips_of(const Layers<T>& a) {
    return static_cast<int>(a.replicas * ((a.stack.width + kStrip - 1) / kStrip));
}

template <class T, int kGroups>
__device__ inline StripPlace<T> place_of(const Layers<T>& a, int strip) {
    return StripPlace<T>(a, strip, Shared<T, kGroups>::packed);
}

template <class T>
__device__ inline T branch_scale(const LayerStack& s) {
    return static_cast<T>(s.branch_factor / ::sqrt(static_cast<double>(s.width)));
}

// The piece of this block that follows, `down` the layers or up; false if none does.
template <class T, int kGroups>
__device__ inline bool advance(const Layers<T>& a, bool down, Piece& piece) {
    piece.place = 1 - piece.place;
    piece.start += Shared<T, kGroups>::chunk;
    if (piece.start < static_cast<int>(a.stack.width)) return true;
    piece.start = 0;
    piece.strip += static_cast<int>(gridDim.x);
    if (piece.strip < strips_of(a)) return true;
    piece.strip = static_cast<int>(blockIdx.x);
    piece.l += down ? -1 : 1;
    return down ? piece.l >= 1 : piece.l <= a.stack.depth;
}

template <class T, int kGroups>
__global__ void __launch_bounds__(kThreads, kLeastBlocks<T, kGroups>) forward_kernel(Layers<T> a) {
    const int strips = strips_of(a), first = static_cast<int>(blockIdx.x);
    const int stride = static_cast<int>(gridDim.x), depth = static_cast<int>(a.stack.depth);
    const T scale = branch_scale<T>(a.stack);
    const auto own_place = place_of<T, kGroups>(a, first);
    const Strip<T, kGroups> own(a, own_place);
    const auto strip_at = [&](int strip) {
        return Strip<T, kGroups>(a, strip == first ? own_place : place_of<T, kGroups>(a, strip));
    };
    Piece piece{1, first, 0, 0};
    const auto ask_next = [&](Piece& at) {
        if (advance<T, kGroups>(a, false, at)) strip_at(at.strip).ask_rows(at);
        close_copies();
    };
    own.ask_rows(piece);
    close_copies();
    Barrier barrier(a.arrived);
    for (int strip = first; strip < strips; strip += stride) strip_at(strip).pack_features();
    for (int l = 1; l <= depth; ++l) {
        barrier.arrive();
        auto before = own.fetch_features(l - 1);
        barrier.wait();
        for (int strip = first; strip < strips; strip += stride) {
            const auto here = strip_at(strip);
            if (strip != first) before = here.fetch_features(l - 1);
            here.forward(l, scale, before, piece, ask_next);
        }
    }
}

template <class T, int kGroups>
__global__ void __launch_bounds__(kThreads, kLeastBlocks<T, kGroups>) backward_kernel(Layers<T> a) {
    const int strips = strips_of(a), first = static_cast<int>(blockIdx.x);
    const int stride = static_cast<int>(gridDim.x), depth = static_cast<int>(a.stack.depth);
    const T scale = branch_scale<T>(a.stack);
    const auto own_place = place_of<T, kGroups>(a, first);
    const Strip<T, kGroups> own(a, own_place);
    const auto strip_at = [&](int strip) {
        return Strip<T, kGroups>(a, strip == first ? own_place : place_of<T, kGroups>(a, strip));
    };
    Piece piece{depth, first, 0, 0};
    const auto ask_next = [&](Piece& at) {
        if (advance<T, kGroups>(a, true, at)) strip_at(at.strip).ask_columns(at);
        close_copies();
    };
    own.ask_columns(piece);
    close_copies();
    Barrier barrier(a.arrived);
    for (int strip = first; strip < strips; strip += stride) {
        strip_at(strip).pack_adjoints(depth);
    }
    barrier.arrive();
    auto ours = own.fetch_adjoints(depth);
    int place = 0;
    own.weigh(ours, scale, place);
    barrier.wait();
    for (int l = depth; l >= 1; --l) {
        Piece last{};
        for (int strip = first; strip < strips; strip += stride) {
            const auto here = strip_at(strip);
            if (strip != first) {
                ours = here.fetch_adjoints(l);
                __syncthreads();  // the strip before has moved
                here.weigh(ours, scale, place);
            }
            last = here.backward(l, ours, place, strip + stride >= strips, piece, ask_next);
        }
        if (l > 1) {
            barrier.arrive();
            ours = own.fetch_adjoints(l - 1);
        }
        if (a.update) strip_at(last.strip).take_step(last, place);
        if (l > 1) {
            place = 1 - place;
            own.weigh(ours, scale, place);
            barrier.wait();
        }
    }
}

template <class T, int kGroups>
__global__ void __launch_bounds__(kThreads, kLeastBlocks<T, kGroups>) update_kernel(Layers<T> a) {
    const int strips = strips_of(a), first = static_cast<int>(blockIdx.x);
    const int stride = static_cast<int>(gridDim.x), depth = static_cast<int>(a.stack.depth);
    Barrier barrier(a.arrived);
    for (int l = depth; l >= 1; --l) {
        // Beside those of the layer before, which others may be reading.
        for (int strip = first; strip < strips; strip += stride) {
            Strip<T, kGroups>(a, place_of<T, kGroups>(a, strip)).pack_adjoints(l);
        }
        barrier.arrive();
        barrier.wait();
        for (int strip = first; strip < strips; strip += stride) {
            Strip<T, kGroups>(a, place_of<T, kGroups>(a, strip)).update(l);
        }
    }
}

template <class T>
struct Kernels {
    void (*forward)(Layers<T>);
    void (*backward)(Layers<T>);
    void (*update)(Layers<T>);
    std::size_t forward_bytes, backward_bytes;
    std::int64_t packed;
};
template <class T, int kGroups>
Kernels<T> kernels_of_groups() {
    using Here = Shared<T, kGroups>;
    return {forward_kernel<T, kGroups>, backward_kernel<T, kGroups>, update_kernel<T, kGroups>,
            Here::bytes(false),         Here::bytes(true),           Here::packed};
}
template <class T>
Kernels<T> kernels_for(const LayerStack& s) {
    if (s.batch <= kGroup) return kernels_of_groups<T, 1>();
    return s.batch <= 2 * kGroup ? kernels_of_groups<T, 2>() : kernels_of_groups<T, 4>();
}

std::int64_t strips_of(const LayerStack& s) { return (s.width + kStrip - 1) / kStrip; }

template <class T>
bool is_even(const LayerStack& s, const T* matrices) {
    return s.width % kStrip == 0 && reinterpret_cast<std::uintptr_t>(matrices) % 16 == 0;
}

template <class T>
void run(void (*kernel)(Layers<T>), const Layers<T>& layers, int blocks, std::size_t shared_bytes,
         cudaStream_t stream) {
    if (layers.stack.depth == 0) return;
    check(cudaMemsetAsync(layers.arrived, 0, sizeof(unsigned), stream), "clearing memory");
    const std::int64_t strips = layers.replicas * strips_of(layers.stack);
    launch(kernel, dim3(static_cast<unsigned>(std::min<std::int64_t>(blocks, strips))), kThreads,
           shared_bytes, stream, true, layers);
}

}  // namespace

template <class T>
int NarrowLayers<T>::most_replicas(const LayerStack& s) {
    return static_cast<int>(std::max<std::int64_t>(1, kMostStrips / strips_of(s)));
}

template <class T>
void NarrowLayers<T>::lay_out(const LayerStack& s, Arena& arena, int replicas) {
    packed_count_ = 2 * replicas * s.width * kernels_for<T>(s).packed;
    arena.take(packed_, static_cast<double>(packed_count_));
    arena.take(arrived_, 1);
}

template <class T>
void NarrowLayers<T>::prepare(const LayerStack& s, const Wave<T>& wave) {
    const Kernels<T> kernels = kernels_for<T>(s);
    forward_blocks_ = resident_blocks(kernels.forward, kThreads, kernels.forward_bytes);
    backward_blocks_ = resident_blocks(kernels.backward, kThreads, kernels.backward_bytes);
    update_blocks_ = resident_blocks(kernels.update, kThreads, kernels.backward_bytes);
    check(cudaMemsetAsync(packed_, 0, static_cast<std::size_t>(packed_count_) * sizeof(T),
                          wave.stream),
          "clearing memory");
}

template <class T>
void NarrowLayers<T>::forward(const LayerStack& s, const Wave<T>& wave, const T* hidden) const {
    Layers<T> layers{};
    layers.stack = s;
    layers.replicas = wave.count;
    layers.hidden = const_cast<T*>(hidden);
    layers.features = wave.features;
    layers.bad_step = wave.bad_step;
    layers.packed = packed_;
    layers.arrived = arrived_;
    layers.even = is_even(s, hidden);
    const Kernels<T> kernels = kernels_for<T>(s);
    run(kernels.forward, layers, forward_blocks_, kernels.forward_bytes, wave.stream);
}

template <class T>
void NarrowLayers<T>::backward(const LayerStack& s, const Wave<T>& wave, T* hidden,
                               T* backward_hidden, bool all_adjoints, bool update,
                               double step) const {
    const Layers<T> layers{s,
                           wave.count,
                           hidden,
                           backward_hidden,
                           wave.features,
                           {wave.adjoints, all_adjoints, wave.sources},
                           all_adjoints ? s.depth + 1 : 2,
                           wave.weights,
                           wave.bad_step,
                           update,
                           step / std::sqrt(static_cast<double>(s.width)),
                           packed_,
                           arrived_,
                           is_even(s, hidden) && is_even(s, backward_hidden)};
    const Kernels<T> kernels = kernels_for<T>(s);
    run(kernels.backward, layers, backward_blocks_, kernels.backward_bytes, wave.stream);
}

template <class T>
void NarrowLayers<T>::update(const LayerStack& s, const Wave<T>& wave, T* hidden,
                             double step) const {
    Layers<T> layers{};
    layers.stack = s;
    layers.replicas = wave.count;
    layers.hidden = layers.backward_hidden = hidden;
    layers.features = wave.features;
    layers.adjoints = {wave.adjoints, true};
    layers.stored_adjoints = s.depth + 1;
    layers.weights = wave.weights;
    layers.bad_step = wave.bad_step;
    layers.update = true;
    layers.step = step / std::sqrt(static_cast<double>(s.width));
    layers.packed = packed_;
    layers.arrived = arrived_;
    layers.even = is_even(s, hidden);
    const Kernels<T> kernels = kernels_for<T>(s);
    run(kernels.update, layers, update_blocks_, kernels.backward_bytes, wave.stream);
}

template class NarrowLayers<float>;
template class NarrowLayers<double>;

}  // namespace nfd_fast::cuda
