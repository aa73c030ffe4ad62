// The conditional engine on a GPU: layer_algebra.hpp's representation, passes over the neurons.
//
// One launch is one pass over all layers, forward or backward, of all replicas in flight. The
// blocks of a replica share its neurons out in chunks of tiles, which depend on the width alone: so
// do the sums, and their bits. Per layer each neuron is visited once: the update of a layer and the
// reductions for the next share a visit, as on the processor. In between, when all blocks have
// arrived, the replica's first block (the leader) adds the sums up, does the algebra and publishes
// what the next sweep needs; the others wait for that alone, so that a layer has one meeting and
// not two. Meanwhile the second block (the archivist) makes the columns of the layer before part of
// what that layer remembers, which nobody needs until the next pass.
//
// A tile has its columns one after the other. In a sweep a thread takes a neuron and walks over the
// columns. In a reduction a warp takes four columns and walks over the neurons, with the block that
// they are compared with staged in float64 in shared memory: sixteen products for eight numbers
// read, and each sum is made by one warp.

#include <algorithm>
#include <cmath>
#include <new>

#include "cuda/activate.hpp"
#include "cuda/crew.hpp"
#include "cuda/engine.hpp"
#include "cuda/noise_block.hpp"
#include "cuda/reduction.hpp"
#include "cuda/replicas.hpp"
#include "nfd_fast/layer_algebra.hpp"
#include "training/arena.hpp"

namespace nfd_fast::cuda {
namespace conditional {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// Of a replica. As many as fit twice on the 132 multiprocessors of a Hopper card; on others the
// blocks take several chunks, or fewer blocks are used, and the bits are the same.
constexpr std::int64_t kMostChunks = 264;

// Neurons per tile: a thread each on wide layers; narrow ones are spread over more blocks.
constexpr std::int64_t kTile = 256, kNarrowTile = 128;
constexpr std::int64_t kWide = kTile * kMostChunks / 4;

// Bases and images of both sides.
constexpr std::int64_t kTables = 4;

// Columns of a block that a thread holds at once: kMostHeld, or as many as the batch has.
constexpr int kMostHeld = 8;

// The most shared memory for a layer's small matrices: with what is staged, two blocks fit.
constexpr double kMostStepBytes = 65536;

// From how many numbers of a block's coefficients on a whole block works faster than its warp.
constexpr std::int64_t kBlockCrewFrom = 768;

// A round leaves 1e-4 of what a column shares with those before it, as on the processor.
constexpr int kMostRounds = 32;

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

    std::int64_t fine, column;  // fine noise layers per layer; noise column of the first sample
    const std::uint64_t* seeds;
    T* features;
    T* adjoints;
    std::int64_t adjoint_layers;  // 2 or L+1
    const double* weights;        // (replicas, B)
    double step;                  // of the update; 0 if the weights don't move

    T* noise;          // (replicas, tiles, B, tile) of the layer that comes next
    T* block;          // (replicas, tiles, B, tile) what the layer is asked about, or Z
    T* accumulated;    // (replicas, tiles, B, tile) sum of the coupling over layers
    double* sums;      // (replicas, 2, chunks, slot)
    double* measured;  // (replicas, 2, chunks, measure)
    double* combined;  // (replicas, 2, slot) where it is not in shared memory
    std::int64_t slot_size, measure_size;
    unsigned char* steps;              // (replicas, 2) published by turns
    std::int64_t step_bytes, applied;  // of one; where what a sweep needs begins
    bool step_shared;                  // whether blocks keep a copy in shared memory
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

// sum[b] += column[i] coefficients[i][b] over `count` columns, for one neuron of a tile. A few
// columns are asked for before the first is used. Not more: what a sweep runs through must fit
// where instructions are kept.
template <int N, class T>
__device__ inline void combine(const T* column, int step, std::int64_t count, const T* coefficients,
                               int row, T (&sum)[N]) {
    constexpr int at_once = 8;
#pragma unroll 1
    for (auto left = static_cast<int>(count); left > 0; left -= at_once) {
        T value[at_once];
#pragma unroll
        for (int m = 0; m < at_once; ++m) value[m] = m < left ? column[m * step] : T(0);
#pragma unroll
        for (int m = 0; m < at_once; ++m) {
            if (m >= left) break;
            T factor[N];
            load_row<N>(coefficients + m * row, factor);
#pragma unroll
            for (int b = 0; b < N; ++b) sum[b] = fused_multiply_add(value[m], factor[b], sum[b]);
        }
        column += at_once * step;
        coefficients += at_once * row;
    }
}

// One block of a pass.
template <class T, int N>
class Sweeper {
    using Algebra = LayerAlgebra<T, Crew>;
    static constexpr std::int64_t kScratch = 64;  // numbers

  public:
    // Lives in shared memory itself, in front of what it keeps there: one for the block, made by
    // one thread. (What a thread keeps on its stack is as far away as the neurons.)
    __device__ explicit Sweeper(const Pass<T>& pass)
        : p_(pass),
          replica_(blockIdx.x / static_cast<unsigned>(pass.members)),
          member_(static_cast<int>(blockIdx.x % static_cast<unsigned>(pass.members))),
          side_(pass.rules.side),
          batch_(pass.stack.batch),
          n_(pass.stack.width),
          tile_(static_cast<int>(pass.tile_width)),
          row_(static_cast<int>(pass.rules.padded(batch_))),
          stored_(batch_ > N),
          memory_(of_replica()),
          crew_(crew_size(pass), nullptr, 0) {
        auto* shared = shared_memory<unsigned char>() + rounded(sizeof(Sweeper));
        const auto take = [&shared](std::int64_t bytes) {
            unsigned char* taken = shared;
            shared += rounded(bytes);
            return taken;
        };
        right_ = reinterpret_cast<double*>(take(N * tile_ * 8));
        right_noise_ = reinterpret_cast<double*>(take(N * tile_ * 8));
        left_ = reinterpret_cast<T*>(take(N * tile_ * static_cast<std::int64_t>(sizeof(T))));
        scratch_ = reinterpret_cast<double*>(take(kScratch * 8));
        crew_ = Crew(crew_size(pass), scratch_, kScratch);
        new (&algebra_) Algebra(near_, p_.rules, crew_, step_);
        if (p_.step_shared) {
            region_ = take(p_.step_bytes);
            combined_ = reinterpret_cast<double*>(take(p_.slot_size * 8));
            matrices_ = reinterpret_cast<double*>(take(matrix_bytes(p_)));
            lay_out(region_);
        } else {
            combined_ = p_.combined + (replica_ * 2 + (member_ == 0 ? 0 : 1)) * p_.slot_size;
        }
    }

    // Where a step is worked out in shared memory.
    static std::int64_t step_shared_bytes(const Pass<T>& p) {
        return rounded(p.step_bytes) + rounded(p.slot_size * 8) + rounded(matrix_bytes(p));
    }
    static std::int64_t shared_bytes(const Pass<T>& p) {
        std::int64_t bytes = rounded(sizeof(Sweeper)) + 2 * rounded(N * p.tile_width * 8) +
                             rounded(N * p.tile_width * static_cast<std::int64_t>(sizeof(T))) +
                             rounded(kScratch * 8);
        if (p.step_shared) bytes += step_shared_bytes(p);
        return bytes;
    }

    __device__ void run() {
        // Set before the launch, or by none before all have arrived once.
        if (p_.bad_step[replica_] != kNoBadStep) return;
        const std::int64_t depth = p_.stack.depth;
        // One place for each sweep: the code is large enough as it is.
#pragma unroll 1
        for (std::int64_t index = -1; index < depth; ++index) {
            if (index >= 0) {
                if (!prepare(index)) return;
                if (leader()) record(index);
            }
            for_tiles([&](std::int64_t chunk, std::int64_t tile, bool first) {
                if (index >= 0) {
                    update(index, chunk, tile, first);
                } else if (coupled()) {
                    clear_accumulated(tile);
                }
                if (index + 1 < depth) reduce(index + 1, chunk, tile, first);
            });
        }
        if (coupled() && p_.coupling_accumulated) square_accumulated();
        arrive();
        if (archivist()) {
            wait_for_all();
            if (p_.rules.keep) append(depth - 1);
            if (coupled() && p_.coupling_accumulated) finish_coupling();
        }
    }

  private:
    static NFD_FAST_HD std::int64_t rounded(std::int64_t bytes) { return (bytes + 63) / 64 * 64; }
    static NFD_FAST_HD std::int64_t matrix_bytes(const Pass<T>& p) {
        const std::int64_t capacity = p.memory.capacity;
        return (kMatrices * capacity + p.stack.batch) * capacity * 8;
    }
    static __device__ int crew_size(const Pass<T>& p) {
        return p.memory.capacity * p.stack.batch >= kBlockCrewFrom ? kThreads : kWarp;
    }

    __device__ bool forward() const { return side_ == kFeatures; }
    __device__ Side other() const { return opposite(side_); }
    __device__ bool reused() const { return p_.rules.reused; }
    __device__ bool coupled() const { return p_.rules.coupled; }
    __device__ bool leader() const { return member_ == 0; }
    __device__ bool archivist() const { return member_ == (p_.members > 1 ? 1 : 0); }
    __device__ std::int64_t layer_at(std::int64_t index) const {
        return forward() ? index + 1 : p_.stack.depth - index;
    }
    __device__ std::int64_t rank(Side side, std::int64_t layer) const {
        return memory_.ranks[side][layer - 1];
    }

    // --- Where things are ---

    __device__ LayerMemory of_replica() const {
        LayerMemory m = p_.memory;
        const std::int64_t squares = p_.stack.depth * m.capacity * m.capacity * replica_;
#pragma unroll 1
        for (int side = 0; side < 2; ++side) {
            m.factor[side] += squares;
            m.gamma[side] += squares;
            if (m.cross[side]) m.cross[side] += squares;
            if (m.along_other[side]) m.along_other[side] += squares;
            m.ranks[side] += p_.stack.depth * replica_;
        }
        m.learned += squares;
        m.features += p_.stack.depth * m.capacity * batch_ * replica_;
        return m;
    }
    __device__ void lay_out(unsigned char* region) {
        Arena arena(region);
        step_.lay_out(arena, memory_.capacity, batch_, row_);
    }
    __device__ T* tile_of(T* array, std::int64_t layer, std::int64_t tile) const {
        return array + ((replica_ * p_.stack.depth + layer - 1) * p_.tiles + tile) * kTables *
                           memory_.capacity * tile_;
    }
    // Of the arrays (replicas, tiles, B, tile).
    __device__ T* block_of(T* array, std::int64_t tile) const {
        return array + (replica_ * p_.tiles + tile) * batch_ * tile_;
    }
    __device__ T* features(std::int64_t layer) const {
        return p_.features + (replica_ * (p_.stack.depth + 1) + layer) * p_.stack.layer_size();
    }
    __device__ T* adjoints(std::int64_t layer) const {
        const std::int64_t at = p_.adjoint_layers == 2 ? layer % 2 : layer;
        return p_.adjoints + (replica_ * p_.adjoint_layers + at) * p_.stack.layer_size();
    }
    __device__ double* sums(std::int64_t index, std::int64_t chunk) const {
        return p_.sums + ((replica_ * 2 + index % 2) * p_.chunks + chunk) * p_.slot_size;
    }
    __device__ double* measured(std::int64_t index, std::int64_t chunk) const {
        return p_.measured + ((replica_ * 2 + index % 2) * p_.chunks + chunk) * p_.measure_size;
    }
    __device__ Products products_of(double* data, std::int64_t layer) const {
        return {data, rank(side_, layer), rank(other(), layer), batch_};
    }
    __device__ std::int64_t product_count(std::int64_t layer) const {
        return Products::count(rank(side_, layer), rank(other(), layer), batch_);
    }
    __device__ Head& published_head(std::int64_t index) const {
        return p_.heads[replica_ * 2 + index % 2];
    }
    __device__ unsigned char* published_step(std::int64_t index) const {
        return p_.steps + (replica_ * 2 + index % 2) * p_.step_bytes;
    }

    // Neighbouring tiles are swept at the same time, each by a block of its own: few pages of
    // memory are then in use at once, and their addresses stay known.
    template <class F>
    __device__ void for_tiles(F f) const {
#pragma unroll 1
        for (std::int64_t chunk = member_; chunk < p_.chunks; chunk += p_.members) {
#pragma unroll 1
            for (std::int64_t tile = chunk; tile < p_.tiles; tile += p_.chunks) {
                f(chunk, tile, tile == chunk);
            }
        }
    }
    // Calls f(i, neuron, there) for this thread's places in a tile; beyond the width is nothing.
    template <class F>
    __device__ void for_neurons(std::int64_t tile, F f) const {
#pragma unroll 1
        for (int i = static_cast<int>(threadIdx.x); i < tile_; i += kThreads) {
            const std::int64_t neuron = tile * tile_ + i;
            f(i, neuron, neuron < n_);
        }
    }

    // --- Meetings ---

    // Whether a count, which may have come round to zero, has still to reach another. Those who are
    // ahead may have passed it.
    __device__ static bool before(unsigned count, unsigned other) {
        return static_cast<int>(count - other) < 0;
    }
    __device__ Meeting& meeting() const { return p_.meetings[replica_]; }

    // Says that this block has done its share.
    __device__ void arrive() {
        __syncthreads();
        if (threadIdx.x == 0) {
            ++phase_;
            __threadfence();
            add_release(&meeting().arrived);
        }
    }
    __device__ void wait_for_all() const {
        if (threadIdx.x == 0) {
            const unsigned all = phase_ * static_cast<unsigned>(p_.members);
            while (before(load_acquire(&meeting().arrived), all)) pause();
            __threadfence();
        }
        __syncthreads();
    }
    __device__ void publish(std::int64_t index, int command) {
        if (p_.step_shared) copy_bytes(region_, p_.step_bytes, published_step(index));
        if (threadIdx.x == 0) {
            head_ = {step_.p, step_.q, step_.rank, step_.refined, step_.uses_other, command};
            published_head(index) = head_;
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            __threadfence();
            store_release(&meeting().published, phase_);
        }
        __syncthreads();
    }
    __device__ void wait_for_leader() const {
        if (threadIdx.x == 0) {
            while (before(load_acquire(&meeting().published), phase_)) pause();
            __threadfence();
        }
        __syncthreads();
    }
    __device__ static void copy_bytes(const unsigned char* from, std::int64_t bytes,
                                      unsigned char* to) {
        struct alignas(16) Piece {
            std::uint64_t number[2];
        };
        const auto* source = reinterpret_cast<const Piece*>(from);
        auto* target = reinterpret_cast<Piece*>(to);
#pragma unroll 1
        for (std::int64_t i = threadIdx.x; i < bytes / 16; i += kThreads) target[i] = source[i];
    }
    // Takes over what was published of a layer, from byte `from` of the arrays on.
    __device__ void take_over(std::int64_t index, std::int64_t from) {
        unsigned char* published = published_step(index);
        if (p_.step_shared) {
            copy_bytes(published + from, p_.step_bytes - from, region_ + from);
        } else if (threadIdx.x == 0) {
            lay_out(published);
        }
        if (threadIdx.x == 0) {
            head_ = published_head(index);
            step_.p = head_.p;
            step_.q = head_.q;
            step_.rank = head_.rank;
            step_.refined = head_.refined;
            step_.uses_other = head_.uses_other;
        }
        __syncthreads();
    }

    // --- Algebra ---

    // Calls f(algebra) by all who take part in it.
    template <class F>
    __device__ void with_algebra(F f) {
        if (crew_.has_me()) f(algebra_);
        __syncthreads();
    }
    // The algebra works on copies of the layer's small matrices in shared memory where they fit:
    // from the device's they would come one line after the other.
    static constexpr int kMatrices = 8;
    __device__ void bring_near(std::int64_t layer) {
        if (!p_.step_shared) {
            if (threadIdx.x == 0) {
                near_ = memory_;
                near_layer_ = layer;
            }
            __syncthreads();
            return;
        }
        const std::int64_t square = memory_.capacity * memory_.capacity;
        double* to = matrices_;
        const auto copy = [&](double* const& array, double*& near) {
            double* const here = to;
            to += square;
            if (!array) return;
            const double* from = array + (layer - 1) * square;
#pragma unroll 1
            for (std::int64_t i = threadIdx.x; i < square; i += kThreads) here[i] = from[i];
            if (threadIdx.x == 0) near = here;
        };
#pragma unroll 1
        for (int side = 0; side < 2; ++side) {
            copy(memory_.factor[side], near_.factor[side]);
            copy(memory_.gamma[side], near_.gamma[side]);
            copy(memory_.cross[side], near_.cross[side]);
        }
        copy(memory_.along_other[side_], near_.along_other[side_]);
        copy(memory_.learned, near_.learned);
        const std::int64_t coefficients = memory_.capacity * batch_;
        const double* from = memory_.features + (layer - 1) * coefficients;
#pragma unroll 1
        for (std::int64_t i = threadIdx.x; i < coefficients; i += kThreads) to[i] = from[i];
        if (threadIdx.x == 0) {
            near_.capacity = memory_.capacity;
            near_.features = to;
#pragma unroll 1
            for (int side = 0; side < 2; ++side) {
                near_.ranks[side] = memory_.ranks[side] + layer - 1;
            }
            near_layer_ = 1;
        }
        __syncthreads();
    }
    // And takes back what append() and learn() have changed.
    __device__ void put_back(std::int64_t layer) {
        if (!p_.step_shared) return;
        const std::int64_t square = memory_.capacity * memory_.capacity;
        const auto copy = [&](const double* near, double* array) {
            if (!array) return;
            double* const to = array + (layer - 1) * square;
#pragma unroll 1
            for (std::int64_t i = threadIdx.x; i < square; i += kThreads) to[i] = near[i];
        };
        copy(near_.factor[side_], memory_.factor[side_]);
        copy(near_.gamma[side_], memory_.gamma[side_]);
#pragma unroll 1
        for (int side = 0; side < 2; ++side) copy(near_.cross[side], memory_.cross[side]);
        copy(near_.along_other[side_], memory_.along_other[side_]);
        copy(near_.learned, memory_.learned);
        if (forward()) {
            const std::int64_t coefficients = memory_.capacity * batch_;
            double* const to = memory_.features + (layer - 1) * coefficients;
#pragma unroll 1
            for (std::int64_t i = threadIdx.x; i < coefficients; i += kThreads) {
                to[i] = near_.features[i];
            }
        }
        __syncthreads();
    }

    // Adds up the sums of all chunks, in increasing order, and divides by n.
    __device__ void gather(const double* first, std::int64_t apart, std::int64_t count) const {
#pragma unroll 1
        for (std::int64_t i = threadIdx.x; i < count; i += kThreads) {
            double sum = 0;
#pragma unroll 16
            for (std::int64_t chunk = 0; chunk < p_.chunks; ++chunk)
                sum += first[chunk * apart + i];
            combined_[i] = sum / static_cast<double>(n_);
        }
        __syncthreads();
    }

    // Brings a layer to where it can be swept: false if the run is to stop.
    __device__ NFD_FAST_OUTLINE bool prepare(std::int64_t index) {
        const std::int64_t layer = layer_at(index);
        bool settled = false;
        for (int round = 0;; ++round) {
            arrive();
            if (archivist() && round == 0 && index > 0 && p_.rules.keep) {
                wait_for_all();
                append(index - 1);
            }
            if (leader()) {
                if (round == 0) bring_near(layer);
                wait_for_all();
                gather(sums(index + (round > 0 ? 1 : 0), 0), p_.slot_size, product_count(layer));
                if (!p_.step_shared) {
                    if (threadIdx.x == 0) lay_out(published_step(index));
                    __syncthreads();
                }
                bool* const outcome = &settled_;
                with_algebra([&](auto& algebra) {
                    const Products found = products_of(combined_, layer);
                    bool done = false;
                    if (round == 0) {
                        done = algebra.take_apart(near_layer_, found);
                    } else {
                        done = algebra.take_rest_apart(near_layer_, found);
                    }
                    const bool last = round == kMostRounds;
                    if (done || last) {
                        algebra.answer();
                    } else {
                        algebra.separate();
                    }
                    if (threadIdx.x == 0) *outcome = done;
                });
                settled = *outcome;
                // Never seen; but no answer rather than a wrong one.
                if (threadIdx.x == 0 && !settled && round == kMostRounds) report(index + 1);
                const bool stop = asked_to_stop(index);
                publish(index, stop ? kStop : settled || round == kMostRounds ? kSweep : kRefine);
            } else {
                wait_for_leader();
                take_over(index, p_.applied);
            }
            if (head_.command == kStop) return false;
            if (head_.command == kSweep) return true;
            for_tiles([&](std::int64_t chunk, std::int64_t tile, bool first) {
                subtract(index, chunk, tile, first);
            });
        }
    }

    __device__ bool asked_to_stop(std::int64_t index) {
        if (index % kHaltEvery != 0) return false;
        if (threadIdx.x == 0) stop_ = *static_cast<const volatile unsigned*>(p_.halt) != 0;
        __syncthreads();
        return stop_;
    }

    __device__ void report(std::int64_t step) const {
        atomicMin(&p_.bad_step[replica_], static_cast<int>(step));
    }

    // Makes the new columns of a layer part of what is known.
    __device__ NFD_FAST_OUTLINE void append(std::int64_t index) {
        const std::int64_t layer = layer_at(index);
        take_over(index, 0);
        bring_near(layer);
        gather(measured(index, 0), p_.measure_size, (step_.p + step_.rank) * step_.rank);
        with_algebra([&](auto& algebra) {
            algebra.append(near_layer_, combined_);
            if (!forward()) algebra.learn(p_.weights + replica_ * batch_, p_.step);
        });
        put_back(layer);
    }

    // What the reductions of a layer already say.
    __device__ NFD_FAST_OUTLINE void record(std::int64_t index) {
        const std::int64_t layer = layer_at(index), depth = p_.stack.depth;
        if (p_.kernels) {
            const std::int64_t at =
                forward() ? replica_ * depth + layer - 1 : replica_ * (depth + 1) + layer;
            double* to = p_.kernels + at * batch_ * batch_;
#pragma unroll 1
            for (std::int64_t i = threadIdx.x; i < batch_ * batch_; i += kThreads) {
                to[i] = step_.xx[i];
            }
        }
        if (p_.ranks && p_.rules.keep && threadIdx.x == 0) {
            p_.ranks[replica_ * depth + layer - 1] = static_cast<double>(step_.p + step_.rank);
        }
        if (!p_.coupling_per_layer || !coupled()) return;
        with_algebra([&](auto& algebra) {
            const double square = algebra.coupling(near_layer_);
            if (threadIdx.x == 0) p_.coupling_per_layer[replica_ * depth + layer - 1] = square;
        });
    }

    // --- Sweeps ---

    // Entries of the block that a layer is asked about, phi(H_{l-1}) or G_l: columns column(b) for
    // b < count, the rest is zero.
    template <class F>
    __device__ void load_asked(std::int64_t layer, std::int64_t count, std::int64_t neuron,
                               bool there, F column, T (&value)[N]) const {
        const T* from = forward() ? features(layer - 1) : adjoints(layer);
#pragma unroll
        for (int b = 0; b < N; ++b) {
            value[b] = there && b < count ? from[column(b) * n_ + neuron] : T(0);
        }
        if (!forward()) return;
        activate(p_.stack.activation, value);
        // Some activations are not zero at zero.
#pragma unroll
        for (int b = 0; b < N; ++b) {
            if (!there || b >= count) value[b] = T(0);
        }
    }
    // The same of the block Z in whose columns the new directions are.
    template <class F>
    __device__ void load_residual(std::int64_t layer, std::int64_t tile, std::int64_t count, int i,
                                  std::int64_t neuron, bool there, F column, T (&value)[N]) const {
        if (!stored_ && !step_.refined) {
            return load_asked(layer, count, neuron, there, column, value);
        }
        const T* from = block_of(p_.block, tile) + i;
#pragma unroll
        for (int b = 0; b < N; ++b) value[b] = b < count ? from[column(b) * tile_] : T(0);
    }

    // Inner products over a tile: sums[j * stride + b] (+)= column j times staged column b.
    struct Task {
        const T* columns;
        int count;
        const double* staged;
        double* sums;
    };
    __device__ void set_task(int at, const T* columns, std::int64_t count, const double* staged,
                             double* sums) {
        if (threadIdx.x == 0) tasks_[at] = {columns, static_cast<int>(count), staged, sums};
    }
    // Does the first `tasks` of tasks_. Four columns at a time go to the warps in turn.
    __device__ __forceinline__ void work(int tasks, std::int64_t staged, std::int64_t stride,
                                         bool first) const {
        constexpr int columns_at_once = 4, rounds = 4;
        constexpr int lanes = kWarp / (columns_at_once * N);  // that end up with the same sum
        const int lane = static_cast<int>(threadIdx.x) % kWarp, tile = static_cast<int>(tile_);
        int group = static_cast<int>(threadIdx.x) / kWarp;
#pragma unroll 1
        for (int at = 0; at < tasks;) {
            const Task& task = tasks_[at];
            const int groups = (task.count + columns_at_once - 1) / columns_at_once;
            if (group >= groups) {
                group -= groups;
                ++at;
                continue;
            }
            const int j = group * columns_at_once;
            const T* column[columns_at_once];
#pragma unroll
            for (int c = 0; c < columns_at_once; ++c) {
                column[c] = task.columns + (j + c < task.count ? j + c : task.count - 1) * tile;
            }
            const double* right = task.staged;
            double sum[columns_at_once * N];
#pragma unroll
            for (int c = 0; c < columns_at_once * N; ++c) sum[c] = 0;
            // Tiles are multiples of so many warps.
#pragma unroll 1
            for (int i = lane; i < tile; i += rounds * kWarp) {
                T value[rounds][columns_at_once];
#pragma unroll
                for (int m = 0; m < rounds; ++m) {
#pragma unroll
                    for (int c = 0; c < columns_at_once; ++c) {
                        value[m][c] = column[c][i + m * kWarp];
                    }
                }
#pragma unroll
                for (int m = 0; m < rounds; ++m) {
                    double factor[N];
#pragma unroll
                    for (int b = 0; b < N; ++b) factor[b] = right[b * tile + i + m * kWarp];
#pragma unroll
                    for (int c = 0; c < columns_at_once; ++c) {
                        const auto wide = static_cast<double>(value[m][c]);
#pragma unroll
                        for (int b = 0; b < N; ++b) {
                            sum[c * N + b] = fused_multiply_add(wide, factor[b], sum[c * N + b]);
                        }
                    }
                }
            }
            const double total = sums_over_warp<columns_at_once * N>(sum);
            const int mine = lane / lanes, b = mine % N;
            if (lane % lanes == 0 && j + mine / N < task.count && b < staged) {
                double* to = task.sums + (j + mine / N) * stride + b;
                // Nobody else adds to it; so the sum has an order, and nobody waits for it.
                if (first) {
                    *to = total;
                } else {
                    atomicAdd(to, total);
                }
            }
            group += kWarps;
        }
    }

    // The same for seldom ones.
    __device__ NFD_FAST_OUTLINE void work_apart(int tasks, std::int64_t staged, std::int64_t stride,
                                                bool first) const {
        work(tasks, staged, stride, first);
    }

    // Fills the staged columns with what f(i, neuron, there, value) puts into value.
    template <class F>
    __device__ void stage(std::int64_t tile, F f) const {
        for_neurons(tile, [&](int i, std::int64_t neuron, bool there) {
            T value[N];
            f(i, neuron, there, value);
#pragma unroll
            for (int b = 0; b < N; ++b) {
                left_[b * tile_ + i] = value[b];
                right_[b * tile_ + i] = static_cast<double>(value[b]);
            }
        });
    }
    // The same with columns b < count of rows that are a tile long.
    __device__ void stage_rows(std::int64_t tile, const T* from, std::int64_t count) const {
        stage(tile, [&](int i, std::int64_t, bool, T(&value)[N]) {
#pragma unroll
            for (int b = 0; b < N; ++b) value[b] = b < count ? from[b * tile_ + i] : T(0);
        });
    }

    // xi of a layer for columns first ... first + count - 1 of one tile, kept and staged.
    __device__ void draw(std::int64_t layer, std::int64_t tile, std::int64_t first,
                         std::int64_t count) const {
        const nfd_fast::Stream stream =
            forward() ? nfd_fast::Stream::forward_noise : nfd_fast::Stream::backward_noise;
        const T scale = static_cast<T>(1 / ::sqrt(static_cast<double>(p_.fine)));
        const std::uint64_t seed = p_.seeds[replica_];
        const int quads = static_cast<int>(tile_ / 4);
#pragma unroll 1
        for (int unit = static_cast<int>(threadIdx.x); unit < quads * N; unit += kThreads) {
            const int b = unit / quads, i = unit % quads * 4;
            Four<T> z{};
            if (b < count) {
                const std::int64_t neuron = tile * tile_ + i;
                const auto column = static_cast<std::uint32_t>(p_.column + first + b);
#pragma unroll 1
                for (std::int64_t s = 1; s <= p_.fine; ++s) {
                    const Four<T> fresh = made_of<T>(
                        four_words(noise_address(seed, stream, (layer - 1) * p_.fine + s),
                                   static_cast<std::uint32_t>(neuron / 4), column));
#pragma unroll
                    for (int m = 0; m < 4; ++m) {
                        z.value[m] = s == 1 ? fresh.value[m] : z.value[m] + fresh.value[m];
                    }
                }
                T* to = block_of(p_.noise, tile) + (first + b) * tile_ + i;
#pragma unroll
                for (int m = 0; m < 4; ++m) {
                    if (p_.fine > 1) z.value[m] *= scale;
                    if (neuron + m >= n_) z.value[m] = T(0);
                }
                *reinterpret_cast<Four<T>*>(to) = z;
            }
#pragma unroll
            for (int m = 0; m < 4; ++m) {
                right_noise_[b * tile_ + i + m] = static_cast<double>(z.value[m]);
            }
        }
    }

    // Inner products of the next layer's block with everything it will be compared with.
    __device__ void reduce(std::int64_t index, std::int64_t chunk, std::int64_t tile, bool first) {
        const std::int64_t layer = layer_at(index);
        const std::int64_t own = rank(side_, layer), across = rank(other(), layer);
        const Products to = products_of(sums(index, chunk), layer);
        T* block = block_of(p_.block, tile);
#pragma unroll 1
        for (std::int64_t b0 = 0; b0 < batch_; b0 += N) {
            const std::int64_t count = batch_ - b0 < N ? batch_ - b0 : N;
            __syncthreads();  // what was staged has served, and this layer's input is there
            stage(tile, [&](int i, std::int64_t neuron, bool there, T(&value)[N]) {
                load_asked(layer, count, neuron, there, [&](int b) { return b0 + b; }, value);
                if (!stored_) return;
#pragma unroll
                for (int b = 0; b < N; ++b) {
                    if (b < count) block[(b0 + b) * tile_ + i] = value[b];
                }
            });
            draw(layer, tile, b0, count);
            set_task(0, tile_of(p_.basis[side_], layer, tile), own, right_, to.b + b0);
            int tasks = 1;
            if (!stored_) set_task(tasks++, left_, count, right_, to.zz);
            if (reused()) {
                set_task(tasks++, tile_of(p_.images[other()], layer, tile), across, right_,
                         to.s + b0);
                set_task(tasks++, tile_of(p_.basis[other()], layer, tile), across, right_noise_,
                         to.z + b0);
            }
            __syncthreads();
            work(tasks, count, batch_, first);
        }
        if (stored_) square(tile, first, to.zz);
    }

    // The Gram of the kept block of a tile.
    __device__ NFD_FAST_OUTLINE void square(std::int64_t tile, bool first, double* to) {
        const T* block = block_of(p_.block, tile);
#pragma unroll 1
        for (std::int64_t b0 = 0; b0 < batch_; b0 += N) {
            const std::int64_t count = batch_ - b0 < N ? batch_ - b0 : N;
            __syncthreads();
            stage_rows(tile, block + b0 * tile_, count);
            set_task(0, block, batch_, right_, to + b0);
            __syncthreads();
            work_apart(1, count, batch_, first);
        }
    }

    // The sweep of a round for a nearly dependent block.
    __device__ NFD_FAST_OUTLINE void subtract(std::int64_t index, std::int64_t chunk,
                                              std::int64_t tile, bool first) {
        const std::int64_t layer = layer_at(index);
        T* basis = tile_of(p_.basis[side_], layer, tile);
        T* block = block_of(p_.block, tile);
        for_neurons(tile, [&](int i, std::int64_t neuron, bool there) {
#pragma unroll 1
            for (std::int64_t b0 = 0; b0 < batch_; b0 += N) {
                const std::int64_t count = batch_ - b0 < N ? batch_ - b0 : N;
                T sum[N];
                load_residual(
                    layer, tile, count, i, neuron, there, [&](int b) { return b0 + b; }, sum);
                combine<N>(basis + i, tile_, step_.p, step_.off_basis + b0, row_, sum);
#pragma unroll
                for (int b = 0; b < N; ++b) {
                    if (b < count) block[(b0 + b) * tile_ + i] = sum[b];
                }
            }
#pragma unroll 1
            for (std::int64_t j = 1; j < batch_; ++j) {
                if (!step_.open[j]) continue;
                T sum = block[j * tile_ + i];
#pragma unroll 1
                for (std::int64_t m = 0; m < j; ++m) {
                    sum = fused_multiply_add(block[m * tile_ + i], step_.off_block[j * row_ + m],
                                             sum);
                }
                block[j * tile_ + i] = sum;
            }
        });
        const Products to = products_of(sums(index + 1, chunk), layer);
#pragma unroll 1
        for (std::int64_t b0 = 0; b0 < batch_; b0 += N) {
            const std::int64_t count = batch_ - b0 < N ? batch_ - b0 : N;
            __syncthreads();
            stage_rows(tile, block + b0 * tile_, count);
            set_task(0, basis, step_.p, right_, to.b + b0);
            set_task(1, block, batch_, right_, to.zz + b0);
            if (reused()) {
                set_task(2, tile_of(p_.images[other()], layer, tile), step_.q, right_, to.s + b0);
            }
            __syncthreads();
            work_apart(reused() ? 3 : 2, count, batch_, first);
        }
    }

    // Stores the new columns and makes the next features or adjoints.
    __device__ void update(std::int64_t index, std::int64_t chunk, std::int64_t tile, bool first) {
        const std::int64_t layer = layer_at(index);
        if (p_.rules.keep && step_.rank > 0) store_columns(index, chunk, tile, first);
        const T* images = tile_of(p_.images[side_], layer, tile);
        const T* other_basis = tile_of(p_.basis[other()], layer, tile);
        const T* xi = block_of(p_.noise, tile);
        T* accumulated = coupled() ? block_of(p_.accumulated, tile) : nullptr;
        const T* before = features(layer - 1);
        const T* above = forward() ? nullptr : adjoints(layer);
        T* out = forward() ? features(layer) : adjoints(layer - 1);
        const T scale = static_cast<T>(p_.stack.branch_factor);
        bool finite = true;
        for_neurons(tile, [&](int i, std::int64_t neuron, bool there) {
#pragma unroll 1
            for (std::int64_t b0 = 0; b0 < batch_; b0 += N) {
                const std::int64_t count = batch_ - b0 < N ? batch_ - b0 : N;
                T sum[N], below[N], carried[N];
#pragma unroll
                for (int b = 0; b < N; ++b) {
                    const bool is = there && b < count;
                    const std::int64_t at = (b0 + b) * n_ + neuron;
                    below[b] = is ? before[at] : T(0);
                    carried[b] = is && !forward() && p_.stack.skip ? above[at] : T(0);
                    sum[b] = forward() && p_.stack.skip ? below[b] : T(0);
                }
#pragma unroll 1
                for (int part = 0; part < (step_.uses_other ? 3 : 2); ++part) {
                    const T* columns = part == 0 ? images : part == 1 ? xi : other_basis;
                    const std::int64_t terms = part == 0 ? step_.p : part == 1 ? batch_ : step_.q;
                    const T* factors = part == 0   ? step_.images
                                       : part == 1 ? step_.noise
                                                   : step_.other;
                    combine<N>(columns + i, tile_, terms, factors + b0, row_, sum);
                }
                if (accumulated) {
                    T coupling[N];
#pragma unroll
                    for (int b = 0; b < N; ++b) {
                        coupling[b] = b < count ? accumulated[(b0 + b) * tile_ + i] : T(0);
                    }
                    combine<N>(other_basis + i, tile_, step_.q, step_.coupling + b0, row_,
                               coupling);
#pragma unroll
                    for (int b = 0; b < N; ++b) {
                        if (b < count) accumulated[(b0 + b) * tile_ + i] = coupling[b];
                    }
                }
                if (!forward()) {
                    differentiate(p_.stack.activation, below);
#pragma unroll
                    for (int b = 0; b < N; ++b) {
                        const T slope = scale * below[b];
                        sum[b] = p_.stack.skip ? fused_multiply_add(slope, sum[b], carried[b])
                                               : slope * sum[b];
                    }
                }
                if (!there) continue;
#pragma unroll
                for (int b = 0; b < N; ++b) {
                    if (b >= count) continue;
                    out[(b0 + b) * n_ + neuron] = sum[b];
                    finite = finite && sum[b] - sum[b] == T(0);
                }
            }
        });
        if (!finite) report(index + 1);
    }

    // The new columns of the basis and their images, and the products by which they are measured.
    __device__ void store_columns(std::int64_t index, std::int64_t chunk, std::int64_t tile,
                                  bool first) {
        const std::int64_t layer = layer_at(index), p = step_.p, q = step_.q, rank = step_.rank;
        const int row = static_cast<int>(p_.rules.padded(rank));
        T* basis = tile_of(p_.basis[side_], layer, tile);
        T* fresh = basis + p * tile_;
        T* image = tile_of(p_.images[side_], layer, tile) + p * tile_;
        const T* other_basis = tile_of(p_.basis[other()], layer, tile);
        const T* xi = block_of(p_.noise, tile);
        __syncthreads();  // what was staged for the tile before has served
        for_neurons(tile, [&](int i, std::int64_t neuron, bool there) {
#pragma unroll 1
            for (std::int64_t r0 = 0; r0 < rank; r0 += N) {
                const std::int64_t count = rank - r0 < N ? rank - r0 : N;
                T sum[N];
                load_residual(
                    layer, tile, count, i, neuron, there,
                    [&](int r) { return step_.pivot[r0 + r]; }, sum);
                combine<N>(basis + i, tile_, p, step_.from_basis + r0, row, sum);
                if (rank <= N) {
                    // All at hand: the triangle at once.
#pragma unroll
                    for (int r = 0; r < N; ++r) {
                        T direction = T(0);
#pragma unroll
                        for (int m = 0; m < N; ++m) {
                            if (m < count && r < count) {
                                direction = fused_multiply_add(sum[m], step_.inverse[m * row + r],
                                                               direction);
                            }
                        }
                        if (r < count) fresh[r * tile_ + i] = direction;
                        right_[r * tile_ + i] = static_cast<double>(direction);
                    }
                } else {
#pragma unroll
                    for (int r = 0; r < N; ++r) {
                        if (r < count) fresh[(r0 + r) * tile_ + i] = sum[r];
                    }
                }
                T shifted[N];
#pragma unroll
                for (int r = 0; r < N; ++r) {
                    shifted[r] = r < count ? xi[step_.pivot[r0 + r] * tile_ + i] : T(0);
                }
                if (reused()) {
                    combine<N>(other_basis + i, tile_, q, step_.image_shift + r0, row, shifted);
                }
#pragma unroll
                for (int r = 0; r < N; ++r) {
                    if (r < count) image[(r0 + r) * tile_ + i] = shifted[r];
                }
            }
            // In place from the last on: a direction needs those before it alone.
#pragma unroll 1
            for (std::int64_t r = rank; rank > N && r-- > 0;) {
                T direction = T(0);
#pragma unroll 1
                for (std::int64_t m = 0; m <= r; ++m) {
                    direction = fused_multiply_add(fresh[m * tile_ + i], step_.inverse[m * row + r],
                                                   direction);
                }
                fresh[r * tile_ + i] = direction;
            }
        });
#pragma unroll 1
        for (std::int64_t r0 = 0; r0 < rank; r0 += N) {
            const std::int64_t count = rank - r0 < N ? rank - r0 : N;
            if (rank > N) {
                __syncthreads();
                stage_rows(tile, fresh + r0 * tile_, count);
            }
            set_task(0, basis, p + rank, right_, measured(index, chunk) + r0);
            __syncthreads();
            work(1, count, rank, first);
        }
        __syncthreads();
    }

    // --- Coupling, summed over the layers ---

    __device__ void clear_accumulated(std::int64_t tile) const {
        T* to = block_of(p_.accumulated, tile);
#pragma unroll 1
        for (std::int64_t i = threadIdx.x; i < batch_ * tile_; i += kThreads) to[i] = T(0);
    }
    __device__ void square_accumulated() const {
        __syncthreads();  // the last sweep had a neuron to a thread
        for_tiles([&](std::int64_t chunk, std::int64_t tile, bool first) {
            const T* from = block_of(p_.accumulated, tile);
            double sum = 0;
#pragma unroll 1
            for (std::int64_t i = threadIdx.x; i < batch_ * tile_; i += kThreads) {
                const auto value = static_cast<double>(from[i]);
                sum = fused_multiply_add(value, value, sum);
            }
            const double total = block_sum(sum, scratch_);
            if (threadIdx.x != 0) return;
            double* to = sums(p_.stack.depth, chunk);
            *to = first ? total : *to + total;
        });
    }
    __device__ void finish_coupling() const {
        gather(sums(p_.stack.depth, 0), p_.slot_size, 1);
        if (threadIdx.x == 0) {
            p_.coupling_accumulated[replica_] = combined_[0] / static_cast<double>(batch_);
        }
    }

    const Pass<T> p_;
    const std::int64_t replica_;
    const int member_;
    const Side side_;
    const std::int64_t batch_, n_;
    const int tile_;
    const int row_;      // numbers of a row of coefficients, filled up
    const bool stored_;  // whether the block is kept whole, since more than N columns are asked
    const LayerMemory memory_;
    LayerMemory near_{};  // of the layer that the algebra is about, as its layer near_layer_
    std::int64_t near_layer_ = 1;
    double* matrices_ = nullptr;  // of near_, where they are copies
    unsigned phase_ = 0;
    bool settled_ = false, stop_ = false;
    Head head_{};
    Step<T> step_{};
    Crew crew_;
    union {
        Algebra algebra_;  // which refers to the above
    };
    double *right_, *right_noise_;  // (N, tile) staged columns and noise
    T* left_;                       // (N, tile) the same columns
    Task tasks_[4];
    double* scratch_;                  // (kScratch)
    unsigned char* region_ = nullptr;  // the arrays of the step
    double* combined_;
};

template <class T, int N>
__global__ void __launch_bounds__(kThreads, 2) pass_over_layers(const
#if !defined(NFD_FAST_EMULATES_CUDA)
                                                                __grid_constant__
#endif
                                                                    Pass<T>
                                                                        pass) {
    auto* sweeper = shared_memory<Sweeper<T, N>>();
    if (threadIdx.x == 0) new (sweeper) Sweeper<T, N>(pass);
    __syncthreads();
    sweeper->run();
}

template <class T>
using PassKernel = void (*)(Pass<T>);

// Columns of a block that a thread holds at once.
constexpr int held(std::int64_t batch) {
    return batch == 1 ? 1 : batch == 2 ? 2 : batch <= 4 ? 4 : kMostHeld;
}

// Calls f(kernel, shared memory) for the batch of a pass.
template <class T, class F>
void with_kernel(const Pass<T>& p, F f) {
    const auto of = [&](auto columns) {
        constexpr int count = decltype(columns)::value;
        f(pass_over_layers<T, count>, static_cast<std::size_t>(Sweeper<T, count>::shared_bytes(p)));
    };
    switch (held(p.stack.batch)) {
        case 1:
            return of(std::integral_constant<int, 1>{});
        case 2:
            return of(std::integral_constant<int, 2>{});
        case 4:
            return of(std::integral_constant<int, 4>{});
        default:
            return of(std::integral_constant<int, kMostHeld>{});
    }
}

template <class T>
struct ConditionalHidden {
    static constexpr bool records_kernels = true;

    Pass<T> pass;
    std::int64_t squares;  // numbers of a replica's arrays of small matrices

    // The sizes that depend on the problem alone.
    static Pass<T> sizes(const Problem<T>& p) {
        Pass<T> pass{};
        const std::int64_t width = p.stack.width, batch = p.stack.batch;
        pass.stack = p.stack;
        pass.memory.capacity = std::min((p.first_update + p.updates) * batch, width);
        pass.tile_width = width >= kWide ? kTile : kNarrowTile;
        pass.tiles = (width + pass.tile_width - 1) / pass.tile_width;
        const std::int64_t most = (pass.tiles + kMostChunks - 1) / kMostChunks;  // of a chunk
        pass.chunks = (pass.tiles + most - 1) / most;
        pass.fine = p.fine;
        const std::int64_t capacity = pass.memory.capacity;
        pass.slot_size =
            std::max(Products::count(capacity, capacity, batch), (capacity + batch) * batch);
        pass.measure_size = (capacity + batch) * batch;
        const std::int64_t columns = held(batch);
        const std::int64_t padded = (batch + columns - 1) / columns * columns;
        Arena arena(nullptr);
        Step<T> step{};
        pass.applied = static_cast<std::int64_t>(step.lay_out(arena, capacity, batch, padded));
        pass.step_bytes = static_cast<std::int64_t>(arena.used());
        pass.step_shared =
            static_cast<double>(Sweeper<T, 1>::step_shared_bytes(pass)) <= kMostStepBytes;
        return pass;
    }

    static int resident(const Pass<T>& pass) {
        int blocks = 0;
        with_kernel(pass, [&](auto kernel, std::size_t shared) {
            blocks = resident_blocks(kernel, kThreads, shared);
        });
        if (blocks < 1) throw DeviceError("the device is too small for a block of the pass");
        return blocks;
    }

    static int most_replicas(const Problem<T>& p) {
        const Pass<T> pass = sizes(p);
        const std::int64_t blocks = resident(pass);
        return static_cast<int>(std::max<std::int64_t>(1, blocks / pass.chunks));
    }

    static ConditionalHidden lay_out(const Problem<T>& p, Arena& arena, int replicas) {
        ConditionalHidden h{};
        h.pass = sizes(p);
        Pass<T>& s = h.pass;
        const double count = replicas, layers = static_cast<double>(p.stack.depth);
        const double batch = static_cast<double>(p.stack.batch);
        const double columns = static_cast<double>(s.memory.capacity);
        const double padded = static_cast<double>(s.tiles * s.tile_width);
        h.squares = p.stack.depth * s.memory.capacity * s.memory.capacity;
        const double square = count * layers * columns * columns;
        arena.take(s.tables, kTables * count * layers * columns * padded);
        const std::int64_t table = s.memory.capacity * s.tile_width;
        for (const Side side : {kFeatures, kAdjoints}) {
            if (s.tables) {
                s.basis[side] = s.tables + 2 * side * table;
                s.images[side] = s.basis[side] + table;
            }
            arena.take(s.memory.factor[side], square);
            arena.take(s.memory.gamma[side], square);
            arena.take(s.memory.cross[side], p.decoupled ? 0 : square);
            arena.take(s.memory.along_other[side], p.keep_coupling ? square : 0);
            arena.take(s.memory.ranks[side], count * layers);
        }
        arena.take(s.memory.learned, square);
        arena.take(s.memory.features, count * layers * columns * batch);
        arena.take(s.noise, count * batch * padded);
        arena.take(s.block, count * batch * padded);
        arena.take(s.accumulated, p.keep_coupling ? count * batch * padded : 0);
        const double chunks = static_cast<double>(s.chunks);
        arena.take(s.sums, 2 * count * chunks * static_cast<double>(s.slot_size));
        arena.take(s.measured, 2 * count * chunks * static_cast<double>(s.measure_size));
        arena.take(s.combined, s.step_shared ? 0 : 2 * count * static_cast<double>(s.slot_size));
        arena.take(s.steps, 2 * count * static_cast<double>(s.step_bytes));
        arena.take(s.heads, 2 * count);
        arena.take(s.meetings, 2 * count);  // room to begin at a multiple of its alignment
        return h;
    }

    // Nothing asked, nothing learned.
    void initialize(const Problem<T>& p, const Wave<T>& wave) {
        const auto clear = [&](void* array, std::int64_t bytes) {
            if (array) {
                check(cudaMemsetAsync(array, 0, static_cast<std::size_t>(bytes), wave.stream),
                      "clearing memory");
            }
        };
        for (const Side side : {kFeatures, kAdjoints}) {
            clear(pass.memory.ranks[side], wave.count * p.stack.depth * 8);
            clear(pass.memory.along_other[side], wave.count * squares * 8);
        }
        clear(pass.memory.learned, wave.count * squares * 8);
        // Read whole although written in parts.
        clear(pass.sums, 2 * wave.count * pass.chunks * pass.slot_size * 8);
        clear(pass.steps, 2 * wave.count * pass.step_bytes);
        for (const Side side : {kFeatures, kAdjoints}) {
            clear(pass.memory.factor[side], wave.count * squares * 8);
            clear(pass.memory.gamma[side], wave.count * squares * 8);
            clear(pass.memory.cross[side], wave.count * squares * 8);
        }
        clear(pass.memory.features,
              wave.count * p.stack.depth * pass.memory.capacity * p.stack.batch * 8);
    }

    void forward(const Problem<T>& p, const Wave<T>& wave, std::int64_t k) {
        run(p, wave, k, kFeatures, k < p.updates, 0);
    }
    void backward(const Problem<T>& p, const Wave<T>& wave, std::int64_t k, double step) {
        run(p, wave, k, kAdjoints, true, step);
    }
    void finish(const Problem<T>&, const Wave<T>&) {}

  private:
    void run(const Problem<T>& p, const Wave<T>& wave, std::int64_t k, Side side, bool keep,
             double step) {
        Pass<T> s = pass;
        const bool coupled = !p.decoupled && p.keep_coupling;
        s.rules = {p.stack.width, p.stack.batch,  p.stack.branch_factor, p.tolerance, !p.decoupled,
                   coupled,       p.train_hidden, held(p.stack.batch),   side,        keep};
        s.column = (p.first_update + k) * p.stack.batch;
        s.seeds = wave.seeds;
        s.features = wave.features;
        s.adjoints = wave.adjoints;
        s.adjoint_layers = p.keep_adjoints ? p.stack.depth + 1 : 2;
        s.weights = wave.weights;
        s.step = step;
        s.bad_step = wave.bad_step;
        s.halt = wave.halt;
        s.kernels = side == kFeatures ? wave.activation_kernels : wave.adjoint_kernels;
        s.ranks = wave.ranks;
        s.coupling_per_layer = wave.coupling_per_layer;
        s.coupling_accumulated = wave.coupling_accumulated;
        const auto place = reinterpret_cast<std::uintptr_t>(s.meetings);
        constexpr std::uintptr_t alignment = alignof(Meeting);
        s.meetings = reinterpret_cast<Meeting*>((place + alignment - 1) / alignment * alignment);
        check(cudaMemsetAsync(s.meetings, 0, static_cast<std::size_t>(wave.count) * sizeof(Meeting),
                              wave.stream),
              "clearing memory");
        s.members = static_cast<int>(
            std::max<std::int64_t>(1, std::min<std::int64_t>(s.chunks, resident(s) / wave.count)));
        with_kernel(s, [&](auto kernel, std::size_t shared) {
            launch(kernel, dim3(static_cast<unsigned>(s.members * wave.count)), dim3(kThreads),
                   shared, wave.stream, true, s);
        });
    }
};

}  // namespace conditional

using conditional::ConditionalHidden;

template <class T>
double conditional_bytes(const Problem<T>& problem) {
    return engine_bytes<T, ConditionalHidden>(problem);
}

template <class T>
void train_conditional(const Problem<T>& problem, Monitor& monitor) {
    train_replicas<T, ConditionalHidden>(problem, monitor);
}

template double conditional_bytes<float>(const Problem<float>&);
template double conditional_bytes<double>(const Problem<double>&);
template void train_conditional<float>(const Problem<float>&, Monitor&);
template void train_conditional<double>(const Problem<double>&, Monitor&);

}  // namespace nfd_fast::cuda
