// A pass of the conditional engine over all layers, block by block.
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
#pragma once

#include <cstdint>
#include <new>

#include "cuda/activate.hpp"
#include "cuda/conditional_pass.hpp"
#include "cuda/crew.hpp"
#include "cuda/noise_block.hpp"
#include "cuda/wave.hpp"
#include "training/arena.hpp"

namespace nfd_fast::cuda {
namespace conditional {

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

}  // namespace conditional
}  // namespace nfd_fast::cuda
