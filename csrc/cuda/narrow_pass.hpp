// What a launch over narrow layers is given, and how a block lays its work out.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/narrow_layers.hpp"

namespace nfd_fast::cuda {
namespace narrow {

// What a block does for one strip and layer is a product of 8 rows with the whole batch. The inner
// index is cut into chunks, which fit shared memory, and every chunk among the warps; a lane has
// two rows and four columns per group of 32. The sums of the warps are added in their order. All of
// it depends on the width and the batch alone, and so do the bits: not on how many blocks there are
// or how many strips each has.
//
// A layer takes as long as its slowest block, which mostly waits: for the others, then for memory.
// So whatever does not need them is done or asked for before the block waits: matrices come a piece
// ahead, and the step of the layer above is taken when the adjoints below have been handed on.
constexpr int kStrip = 8;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kGroup = 32;  // columns of a batch
constexpr int kAtOnce = 8;  // of the inner index, whose loads are on their way together
constexpr std::int64_t kMostStrips = 16384;

// Neighbours that move together.
template <class T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
    T of[N];
};
template <class T, int N>
__device__ inline Pack<T, N>& pack_at(T* at) {
    return *reinterpret_cast<Pack<T, N>*>(at);
}
template <class T, int N>
__device__ inline const Pack<T, N>& pack_at(const T* at) {
    return *reinterpret_cast<const Pack<T, N>*>(at);
}

template <class T>
struct Layers {
    LayerStack stack;
    std::int64_t replicas;
    T* hidden;           // (replicas, L, n, n); only read forward
    T* backward_hidden;  // the same; where another one, `hidden` only moves along
    T* features;         // (replicas, L+1, B, n)
    AdjointStore<T> adjoints;
    std::int64_t stored_adjoints;  // layers
    const double* weights;         // (replicas, B)
    int* bad_step;                 // (replicas)
    bool update;
    double step;  // eta beta m/sqrt(n)
    // phi(H_l) or G_l of the layer in work and of the next, neuron by neuron, with zeros where a
    // batch does not fill its groups: (replicas, 2, n, packed).
    T* packed;
    unsigned* arrived;
    bool even;  // strips are whole, and their rows lie where 16 bytes can move at once
};

// For so many a multiprocessor shall have registers; with more, products would keep theirs in
// memory.
template <class T, int kGroups>
constexpr int kLeastBlocks = sizeof(T) * kGroups < 32 ? 2 : 1;

// How a batch of kGroups groups lies in shared memory: padded, so that neither lanes that read a
// row nor lanes that read the same columns of different rows collide.
template <class T, int kGroups>
struct Shared {
    static constexpr int packed = kGroup * kGroups;
    // Numbers of the inner index in a chunk: as many bytes of a batch for every type and size.
    static constexpr int chunk = static_cast<int>((std::size_t{1} << 15) / (packed * sizeof(T)));
    static constexpr int batch_stride = packed + 4;
    static constexpr int row_stride = chunk + 4;  // of a strip's rows
    static constexpr int matrix_size = kStrip * row_stride;
    // Warps share the inner index and, where a batch has several groups, the groups.
    static constexpr int across = kGroups == 1 ? 1 : 2;
    static constexpr int splits = kWarps / across;
    static constexpr int groups = kGroups / across;  // of a warp
    static constexpr int unit = 16 / sizeof(T);      // numbers that are copied at once
    static_assert(chunk % (splits * kAtOnce) == 0, "padded chunks fit");

    T* batch;     // (chunk, packed)
    T* sums;      // (splits, strip, packed)
    T* matrices;  // two pieces: forward (strip, chunk), backward (chunk, strip)
    T* weighted;  // two of (packed, strip): -step/sqrt(n) w_b phi(H)

    static constexpr std::size_t bytes(bool backward) {
        return sizeof(T) *
               static_cast<std::size_t>((chunk + splits * kStrip) * batch_stride + 2 * matrix_size +
                                        (backward ? 2 * packed * kStrip : 0));
    }
    __device__ explicit Shared(T* at)
        : batch(at),
          sums(batch + chunk * batch_stride),
          matrices(sums + splits * kStrip * batch_stride),
          weighted(matrices + 2 * matrix_size) {}
};

// A piece of a matrix that a block multiplies with: a chunk of a strip of a layer.
struct Piece {
    int l, strip, start;
    int place;  // of two in shared memory, in turns
};

// Where a strip's replica has its arrays: found once, not for every layer.
template <class T>
struct StripPlace {
    int replica, first;  // neuron
    T *hidden, *backward_hidden, *features, *adjoints, *packed;

    __device__ StripPlace(const Layers<T>& a, int strip, int packed_batch) {
        const LayerStack& s = a.stack;
        const int strips = (static_cast<int>(s.width) + kStrip - 1) / kStrip;
        replica = strip / strips;
        first = strip % strips * kStrip;
        hidden = a.hidden + replica * s.depth * s.matrix_size();
        backward_hidden = a.backward_hidden + replica * s.depth * s.matrix_size();
        features = a.features + replica * (s.depth + 1) * s.layer_size();
        adjoints = a.adjoints.data + replica * a.stored_adjoints * s.layer_size();
        packed = a.packed + replica * 2 * s.width * packed_batch;
    }
};

}  // namespace narrow
}  // namespace nfd_fast::cuda
