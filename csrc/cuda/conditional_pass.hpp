// What one launch of the conditional engine is given, and how its threads walk over a tile.
#pragma once

#include <cstdint>

#include "cuda/device.hpp"
#include "cuda/reduction.hpp"
#include "nfd_fast/elementary.hpp"
#include "nfd_fast/layer_algebra.hpp"
#include "training/layer_stack.hpp"

namespace nfd_fast::cuda {
namespace conditional {

// Two blocks share a multiprocessor: while one waits for itself, at a barrier, the other works.
// What a block works on next is on its way into shared memory meanwhile.
constexpr int kBlocksAtOnce = 2;
constexpr int kThreads = 256, kWarps = kThreads / kWarp;

// Emulated, small tiles and pieces let small problems have many.
#if defined(NFD_FAST_EMULATES_CUDA)
constexpr std::int64_t kPieceBytes = 8192;
constexpr std::int64_t kWide = 256;
#else
constexpr std::int64_t kPieceBytes = 16384;
constexpr std::int64_t kWide = 4096;
#endif

// Neurons per tile: a thread each on wide layers; narrow ones are spread over more blocks.
constexpr std::int64_t kTile = kThreads, kNarrowTile = 128;

// Columns and neurons whose products a warp adds up at a time: few lanes share a column, since to
// add up over lanes takes longer than to multiply.
constexpr int kGroup = 8, kSlice = 64;

// Chunks of a replica's tiles, each summed by one block: two for each of the 132 multiprocessors of
// a Hopper card but one, which has the leader and the archivist. On others the blocks take several
// chunks, or fewer blocks are used, and the bits are the same.
constexpr std::int64_t kMostChunks = 262;

// Chunks that a block takes at least where there are many replicas.
constexpr std::int64_t kChunksOfBlock = 4;

// Bases and images of both sides.
constexpr std::int64_t kTables = 4;

// Columns of a block that a thread holds at once: kMostHeld, or as many as the batch has.
constexpr int kMostHeld = 8;

// How many layers pass between questions to the host: each takes about as long as a short layer.
constexpr std::int64_t kHaltEvery = 16;

enum Command : int { kSweep, kRefine, kStop };

// What the leader publishes beside the arrays of a Step.
struct Head {
    std::int64_t p, q, rank;
    bool refined, uses_other;
    int command;
};

// The meeting place of a replica's blocks.
struct alignas(128) Meeting {
    unsigned arrived;
    alignas(64) unsigned published;
};

// Everything a pass is given. Arrays have the replicas in flight as leading axis.
template <class T>
struct Pass {
    LayerStack stack;
    LayerRules rules;
    LayerMemory memory;  // of the first replica
    T* tables;           // (replicas, L, tiles, kTables, capacity, tile)
    // Of both sides: the tables of a tile lie side by side. From the first tile's on.
    T *basis[2], *images[2];
    std::int64_t tile_width, tiles, chunks;  // tiles chunk, chunk + chunks, ... make one
    int members;                             // blocks of a replica
    int sweepers;  // the first ones of them, which have chunks: all but a leader, if not alone
    int slots, piece_columns;  // of a block's ColumnStream

    std::int64_t fine, column;  // fine noise layers per layer; noise column of the first sample
    const std::uint64_t* seeds;
    T* features;
    T* adjoints;
    std::int64_t adjoint_layers;  // 2 or L+1
    const double* weights;        // (replicas, B)
    double step;                  // of the update; 0 if the weights don't move

    T* noise;          // (replicas, 2, tiles, B, tile) of the layer that comes next, by turns
    T* block;          // (replicas, tiles, B, tile) what the layer is asked about, or Z
    T* accumulated;    // (replicas, tiles, B, tile) sum of the coupling over layers
    double* sums;      // (replicas, 2 by turns and 1 of rests, chunks, slot)
    double* measured;  // (replicas, 2, chunks, measure)
    double* combined;  // (replicas, 2, slot) where it is not in shared memory
    std::int64_t slot_size, measure_size;
    unsigned char* steps;              // (replicas, 2) published by turns
    std::int64_t step_bytes, applied;  // of one; where what a sweep needs begins
    bool step_shared;                  // whether blocks keep a copy in shared memory
    bool matrices_near;                // and those of a layer's matrices; only with step_shared
    Head* heads;                       // (replicas, 2)
    Meeting* meetings;                 // (replicas)

    int* bad_step;
    const unsigned* halt;
    double* kernels;  // of phi(H_{l-1}) (replicas, L, B, B), or of G_l (replicas, L+1, B, B)
    double* ranks;
    double* coupling_per_layer;
    double* coupling_accumulated;
};

// N numbers of a row of coefficients, which begins at a multiple of as many and is aligned.
template <int N, class T>
__device__ inline void load_row(const T* row, T (&value)[N]) {
    constexpr int per_load = N * sizeof(T) < 16 ? N : 16 / sizeof(T);
    struct alignas(per_load * sizeof(T)) Piece {
        T number[per_load];
    };
#pragma unroll
    for (int i = 0; i < N; i += per_load) {
        const Piece piece = *reinterpret_cast<const Piece*>(row + i);
#pragma unroll
        for (int m = 0; m < per_load; ++m) value[i + m] = piece.number[m];
    }
}

template <int N>
__device__ inline void store_row(const double (&value)[N], double* row) {
    constexpr int per_store = N < 2 ? 1 : 2;
    struct alignas(per_store * 8) Piece {
        double number[per_store];
    };
#pragma unroll
    for (int i = 0; i < N; i += per_store) {
        Piece piece;
#pragma unroll
        for (int m = 0; m < per_store; ++m) piece.number[m] = value[i + m];
        *reinterpret_cast<Piece*>(row + i) = piece;
    }
}

// sum[b] += columns[j][i] coefficients[j][b] over `count` columns that are `apart`, for one neuron.
template <int N, class T>
__device__ inline void combine(const T* columns, int i, int apart, int count, const T* coefficients,
                               int row, T (&sum)[N]) {
    const T* column = columns + i;
#pragma unroll 4
    for (int j = 0; j < count; ++j) {
        T factor[N];
        load_row<N>(coefficients, factor);
#pragma unroll
        for (int b = 0; b < N; ++b) sum[b] = fused_multiply_add(*column, factor[b], sum[b]);
        column += apart;
        coefficients += row;
    }
}

}  // namespace conditional
}  // namespace nfd_fast::cuda
