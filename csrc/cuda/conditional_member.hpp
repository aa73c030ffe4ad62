// One block of those that share a replica of the conditional engine: where its numbers are, how it
// meets the others, and the algebra between two sweeps.
//
// Per layer, when all blocks have arrived, one block (the leader) adds the sums up, does the
// algebra and publishes what the next sweep needs; the others wait for that alone, so that a layer
// has one meeting and not two, and draw the noise of the layer after it meanwhile. Another block
// (the archivist) makes the columns of the layer before part of what that layer remembers, which
// nobody needs until the next pass. Neither has neurons, unless one block has to do all; where
// there is only one to spare, it is both.
#pragma once

#include <cstdint>
#include <new>

#include "cuda/column_stream.hpp"
#include "cuda/conditional_pass.hpp"
#include "cuda/leader_algebra.hpp"
#include "cuda/wave.hpp"
#include "training/arena.hpp"

namespace nfd_fast::cuda {
namespace conditional {

template <class T>
class Member {
    using Algebra = LeaderAlgebra<T>;

  protected:
    static constexpr std::int64_t kScratch = 64;  // numbers

    // Lives in shared memory itself, in front of what it keeps there: one for the block, made by
    // one thread. (What a thread keeps on its stack is as far away as the neurons.)
    // Without neurons there is nothing to stream, and room for a layer's matrices `beyond`.
    __device__ Member(const Pass<T>& pass, unsigned char* shared, unsigned char* beyond)
        : p_(pass),
          replica_(blockIdx.x / static_cast<unsigned>(pass.members)),
          member_(static_cast<int>(blockIdx.x % static_cast<unsigned>(pass.members))),
          side_(pass.rules.side),
          batch_(pass.stack.batch),
          n_(pass.stack.width),
          of_one_(1 / static_cast<double>(pass.stack.width)),
          tile_(static_cast<int>(pass.tile_width)),
          row_(static_cast<int>(pass.rules.padded(batch_))),
          memory_(of_replica()),
          scratch_(reinterpret_cast<double*>(shared)),
          crew_(scratch_, kScratch) {
        shared += rounded(kScratch * 8);
        new (&algebra_) Algebra(near_, p_.rules, crew_, step_);
        matrices_ = reinterpret_cast<double*>(beyond);
        if (p_.step_shared) {
            region_ = shared;
            combined_ = reinterpret_cast<double*>(region_ + rounded(p_.step_bytes));
            lay_out(region_);
        } else {
            combined_ = p_.combined + (replica_ * 2 + (leader() ? 0 : 1)) * p_.slot_size;
        }
    }

  public:
    static NFD_FAST_HD std::int64_t rounded(std::int64_t bytes) { return (bytes + 63) / 64 * 64; }
    static NFD_FAST_HD std::int64_t shared_bytes(const Pass<T>& p) {
        std::int64_t bytes = rounded(kScratch * 8);
        if (p.step_shared) bytes += rounded(p.step_bytes) + rounded(p.slot_size * 8);
        return bytes;
    }
    static NFD_FAST_HD std::int64_t matrices_bytes(const Pass<T>& p) {
        const std::int64_t capacity = p.memory.capacity;
        return rounded((kMatrices * near_stride(capacity) + p.stack.batch) * capacity * 8);
    }

  protected:
    __device__ bool forward() const { return side_ == kFeatures; }
    __device__ Side other() const { return opposite(side_); }
    __device__ bool reused() const { return p_.rules.reused; }
    __device__ bool coupled() const { return p_.rules.coupled; }
    __device__ bool leader() const { return member_ == (p_.members > 1 ? p_.sweepers : 0); }
    __device__ bool archivist() const { return member_ == p_.members - 1; }
    // How many layers late it files: a leader whom the others wait for does so while they sweep.
    __device__ std::int64_t filing_delay() const { return leader() && !sweeps() ? 2 : 1; }
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
            m.inverse[side] += squares;
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
    // Numbers from a table of one tile to the same of the next.
    __device__ std::int64_t tables_apart() const { return kTables * memory_.capacity * tile_; }
    // Numbers from a table of the first tile of all to that of a layer.
    __device__ std::int64_t tables_of(std::int64_t layer) const {
        return (replica_ * p_.stack.depth + layer - 1) * p_.tiles * tables_apart();
    }
    __device__ T* tile_of(T* array, std::int64_t layer, std::int64_t tile) const {
        return array + tables_of(layer) + tile * tables_apart();
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
    // xi of a layer; that of the next one is drawn before it is used.
    __device__ T* noise_of(std::int64_t index, std::int64_t tile) const {
        return p_.noise + ((replica_ * 2 + index % 2) * p_.tiles + tile) * batch_ * tile_;
    }
    __device__ double* sums(std::int64_t index, std::int64_t chunk) const {
        return p_.sums + ((replica_ * 3 + index % 2) * p_.chunks + chunk) * p_.slot_size;
    }
    // Of what a round for a nearly dependent block has left of it.
    __device__ double* rest_sums(std::int64_t chunk) const {
        return p_.sums + ((replica_ * 3 + 2) * p_.chunks + chunk) * p_.slot_size;
    }
    __device__ double* measured(std::int64_t index, std::int64_t chunk) const {
        return p_.measured + ((replica_ * 2 + index % 2) * p_.chunks + chunk) * p_.measure_size;
    }
    __device__ Products products_of(double* data, std::int64_t layer) const {
        return {data, rank(side_, layer), rank(other(), layer), batch_};
    }
    __device__ Head& published_head(std::int64_t index) const {
        return p_.heads[replica_ * 2 + index % 2];
    }
    __device__ unsigned char* published_step(std::int64_t index) const {
        return p_.steps + (replica_ * 2 + index % 2) * p_.step_bytes;
    }

    __device__ bool sweeps() const { return member_ < p_.sweepers; }
    // Neighbouring tiles are swept at the same time, each by a block of its own: few pages of
    // memory are then in use at once, and their addresses stay known.
    __device__ TileOrder tiles() const {
        return {p_.tiles, p_.chunks, sweeps() ? member_ : p_.chunks, p_.sweepers};
    }
    template <class F>
    __device__ void for_tiles(F f) const {
        const TileOrder order = tiles();
#pragma unroll 1
        for (auto at = order.begin(); order.has(at); order.advance(at)) {
            f(at.chunk, at.tile, at.tile == at.chunk);
        }
    }

    // --- Meetings ---
    //
    // What a thread releases after a barrier of its block, whoever acquires it sees, and after a
    // barrier all of its block: no fences beside these.

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
            add_release(&meeting().arrived);
        }
    }
    __device__ void wait_for_all() const {
        if (threadIdx.x == 0) {
            const unsigned all = phase_ * static_cast<unsigned>(p_.members);
            while (before(load_acquire(&meeting().arrived), all)) pause();
        }
        __syncthreads();
    }
    __device__ void publish(std::int64_t index, int command) {
        if (p_.step_shared) {
            struct alignas(16) Piece {
                std::uint64_t number[2];
            };
            const auto* from = reinterpret_cast<const Piece*>(region_);
            auto* to = reinterpret_cast<Piece*>(published_step(index));
#pragma unroll 1
            for (std::int64_t i = threadIdx.x; i < p_.step_bytes / 16; i += kThreads) {
                to[i] = from[i];
            }
        }
        if (threadIdx.x == 0) {
            head_ = {step_.p, step_.q, step_.rank, step_.refined, step_.uses_other, command};
            published_head(index) = head_;
        }
        __syncthreads();
        if (threadIdx.x == 0) store_release(&meeting().published, phase_);
        __syncthreads();
    }
    __device__ void wait_for_leader() const {
        if (threadIdx.x == 0) {
            while (before(load_acquire(&meeting().published), phase_)) pause();
        }
        __syncthreads();
    }
    // Takes over what was published of a layer, from byte `from` of the arrays on.
    __device__ void take_over(std::int64_t index, std::int64_t from) {
        unsigned char* published = published_step(index);
        if (p_.step_shared) {
#pragma unroll 1
            for (std::int64_t i = from + 16 * threadIdx.x; i < p_.step_bytes; i += 16 * kThreads) {
                copy_ahead<16>(region_ + i, published + i);
            }
            close_copies();
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
        await_copies<0>();
        __syncthreads();
    }

    // --- Algebra ---

    // The algebra works on copies of the layer's small matrices in shared memory where they fit:
    // from the device's they would come one line after the other.
    static constexpr int kMatrices = 10;

    // Between the rows of a copy: odd, since threads of a warp read a column.
    static NFD_FAST_HD std::int64_t near_stride(std::int64_t capacity) { return capacity | 1; }

    // Calls f(array of all layers, copy, its entry in near_, whether append() or learn() changes
    // it) for each matrix there is.
    template <class F>
    __device__ void for_matrices(F f) {
        double* here = matrices_;
        const auto next = [&](double* const& array, double*& near, bool changes) {
            if (array) f(array, here, near, changes);
            here += memory_.capacity * near_stride(memory_.capacity);
        };
        next(memory_.factor[side_], near_.factor[side_], true);
        next(memory_.inverse[side_], near_.inverse[side_], true);
        next(memory_.gamma[side_], near_.gamma[side_], true);
        next(memory_.cross[side_], near_.cross[side_], true);
        next(memory_.factor[other()], near_.factor[other()], false);
        next(memory_.inverse[other()], near_.inverse[other()], false);
        next(memory_.gamma[other()], near_.gamma[other()], false);
        next(memory_.cross[other()], near_.cross[other()], true);
        next(memory_.along_other[side_], near_.along_other[side_], true);
        next(memory_.learned, near_.learned, true);
    }
    // Calls f(place in the copy, row, column) for the numbers of the rows in use, a warp to a row.
    template <class F>
    __device__ void for_rows(F f) const {
        const int columns = static_cast<int>(memory_.capacity);
        const int stride = static_cast<int>(near_stride(columns));
#pragma unroll 1
        for (int i = static_cast<int>(threadIdx.x) / kWarp; i < near_rows_; i += kWarps) {
#pragma unroll 1
            for (int j = static_cast<int>(threadIdx.x) % kWarp; j < columns; j += kWarp) {
                f(i * stride + j, i, j);
            }
        }
    }
    __device__ double* near_features() const {
        return matrices_ + kMatrices * memory_.capacity * near_stride(memory_.capacity);
    }

    // Begins to copy what is known of a layer; near_is_there() waits for it.
    __device__ NFD_FAST_OUTLINE void bring_near(std::int64_t layer) {
        if (!p_.matrices_near) {
            if (threadIdx.x == 0) {
                near_ = memory_;
                near_layer_ = layer;
            }
            return;
        }
        // Rows in use, and those that append() may add.
        const std::int64_t p = rank(side_, layer), q = rank(other(), layer);
        const std::int64_t rows = (p > q ? p : q) + batch_, capacity = memory_.capacity;
        if (threadIdx.x == 0) near_rows_ = static_cast<int>(rows < capacity ? rows : capacity);
        __syncthreads();
        for_matrices([&](double* array, double* here, double*& near, bool) {
            const Small from = memory_.square(array, layer);
            if (threadIdx.x == 0) near = here;
            for_rows([&](int at, int i, int j) { copy_ahead<8>(here + at, &from(i, j)); });
        });
        const std::int64_t coefficients = rank(kFeatures, layer) * batch_;
        const double* from = memory_.features + (layer - 1) * memory_.capacity * batch_;
#pragma unroll 1
        for (std::int64_t i = threadIdx.x; i < coefficients; i += kThreads) {
            copy_ahead<8>(near_features() + i, from + i);
        }
        if (threadIdx.x < 2) {
            copy_ahead<8>(&near_ranks_[threadIdx.x], &memory_.ranks[threadIdx.x][layer - 1]);
            near_.ranks[threadIdx.x] = &near_ranks_[threadIdx.x];
        }
        close_copies();
        if (threadIdx.x == 0) {
            near_.capacity = capacity;
            near_.stride = near_stride(capacity);
            near_.features = near_features();
            near_layer_ = 1;
        }
    }
    __device__ void near_is_there() const {
        await_copies<0>();
        __syncthreads();
    }
    // And takes back what append() and learn() have changed.
    __device__ NFD_FAST_OUTLINE void put_back(std::int64_t layer) {
        if (!p_.matrices_near) return;
        if (threadIdx.x == 0) memory_.ranks[side_][layer - 1] = near_ranks_[side_];
        __syncthreads();
        for_matrices([&](double* array, const double* here, double*&, bool changes) {
            const Small to = memory_.square(array, layer);
            if (changes) for_rows([&](int at, int i, int j) { to(i, j) = here[at]; });
        });
        if (forward()) {
            const std::int64_t coefficients = rank(kFeatures, layer) * batch_;
            double* const to = memory_.features + (layer - 1) * memory_.capacity * batch_;
#pragma unroll 1
            for (std::int64_t i = threadIdx.x; i < coefficients; i += kThreads) {
                to[i] = near_features()[i];
            }
        }
        __syncthreads();
    }

    // Adds up the sums of all chunks, in increasing order, and divides by n. The way to the cache
    // is long: many are asked for before the first is added.
    __device__ NFD_FAST_OUTLINE void gather(const double* first, std::int64_t apart,
                                            std::int64_t count) const {
        constexpr int at_once = 32;
        const auto chunks = static_cast<int>(p_.chunks);
#pragma unroll 1
        for (auto i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
            const double* from = first + i;
            double sum = 0;
#pragma unroll 1
            for (int chunk = 0; chunk < chunks; chunk += at_once) {
                double value[at_once];
#pragma unroll
                for (int k = 0; k < at_once; ++k) {
                    value[k] = chunk + k < chunks ? from[k * apart] : 0.0;
                }
#pragma unroll
                for (int k = 0; k < at_once; ++k) sum += value[k];
                from += at_once * apart;
            }
            combined_[i] = sum * of_one_;
        }
        __syncthreads();
    }

    // Having arrived with the sums of a layer, or of what a round for a nearly dependent block has
    // left of it, says what is to be done next; everything for that is there then.
    __device__ NFD_FAST_OUTLINE int decide(std::int64_t index, int round) {
        const std::int64_t layer = layer_at(index);
        if (archivist() && round == 0 && index >= filing_delay() && p_.rules.keep) {
            if (!leader()) wait_for_all();
            append(index - filing_delay());
        }
        if (leader()) {
            if (!p_.step_shared && threadIdx.x == 0) lay_out(published_step(index));
            if (round == 0) {
                bring_near(layer);
                near_is_there();
                algebra_.prepare(near_layer_, found(), p_.matrices_near);
            }
            const bool stop = asked_to_stop(index);
            wait_for_all();
            gather(round == 0 ? sums(index, 0) : rest_sums(0), p_.slot_size,
                   Products::count(near_rank(side_), near_rank(other()), batch_));
            const bool settled =
                round == 0 ? algebra_.take_apart() : algebra_.take_rest_apart(found());
            const bool done = settled || round == kMostRounds;
            // Never seen; but no answer rather than a wrong one.
            if (threadIdx.x == 0 && done && !settled) report(index + 1);
            if (done) {
                algebra_.answer();
            } else {
                algebra_.separate();
            }
            publish(index, stop ? kStop : done ? kSweep : kRefine);
        } else {
            wait_for_leader();
            take_over(index, p_.applied);
        }
        return head_.command;
    }

    __device__ std::int64_t near_rank(Side side) const {
        return near_.ranks[side][near_layer_ - 1];
    }
    // The sums of the layer that is near.
    __device__ Products found() const {
        return {combined_, near_rank(side_), near_rank(other()), batch_};
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
        near_is_there();
        algebra_.append(near_layer_, combined_);
        if (!forward()) algebra_.learn(p_.weights + replica_ * batch_, p_.step);
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
        const double square = algebra_.coupling(near_layer_);
        if (threadIdx.x == 0) p_.coupling_per_layer[replica_ * depth + layer - 1] = square;
    }

    const Pass<T> p_;
    const std::int64_t replica_;
    const int member_;
    const Side side_;
    const std::int64_t batch_, n_;
    const double of_one_;  // share of a neuron in a mean
    const int tile_;
    const int row_;  // numbers of a row of coefficients, filled up
    const LayerMemory memory_;
    LayerMemory near_{};  // of the layer that the algebra is about, as its layer near_layer_
    std::int64_t near_layer_ = 1, near_ranks_[2];
    int near_rows_ = 0;
    double* matrices_ = nullptr;  // of near_, where they are copies
    unsigned phase_ = 0;
    bool stop_ = false;
    Head head_{};
    Step<T> step_{};
    double* const scratch_;  // (kScratch)
    const Crew crew_;
    union {
        Algebra algebra_;  // which refers to the above
    };
    unsigned char* region_ = nullptr;  // the arrays of the step
    double* combined_;
};

}  // namespace conditional
}  // namespace nfd_fast::cuda
