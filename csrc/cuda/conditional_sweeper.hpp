// A pass of the conditional engine over all layers, block by block.
//
// One launch is one pass over all layers, forward or backward, of all replicas in flight. The
// blocks of a replica share its neurons out in chunks of tiles, which depend on the width alone: so
// do the sums, and their bits. Per layer each neuron is visited once: the update of a layer and the
// reductions for the next share a visit, as on the processor. But what the noise of the next layer
// is and what it has in common with what that layer remembers depends on nothing of this one: that
// is done before, while the leader works on this one. What happens in between is in
// conditional_member.hpp, the work on a tile in conditional_workbench.hpp.
#pragma once

#include <cstdint>
#include <new>

#include "cuda/conditional_workbench.hpp"

namespace nfd_fast::cuda {
namespace conditional {

// One block of a pass, for batches of which a thread holds N columns at once.
template <class T, int N>
class Sweeper : public Workbench<T, N> {
    using Base = Workbench<T, N>;
    using Ticket = typename Base::Ticket;
    using Neuron = typename Base::Neuron;
    using Itinerary = typename Base::Itinerary;
    // What the bases have; a template's base must be named.
    using Base::add_columns, Base::adjoints, Base::apart, Base::append, Base::archivist,
        Base::arrive, Base::ask, Base::batch_, Base::block_of, Base::columns_, Base::combined_,
        Base::coupled, Base::decide, Base::draw, Base::features, Base::filing_delay,
        Base::for_tiles, Base::forward, Base::gather, Base::gram, Base::held, Base::layer_at,
        Base::leader, Base::left, Base::load_asked, Base::load_columns, Base::load_residual,
        Base::measured, Base::memory_, Base::multiply_columns, Base::n_, Base::neuron_of,
        Base::noise_of, Base::other, Base::p_, Base::place_of, Base::planned_, Base::products,
        Base::products_of, Base::rank, Base::record, Base::replica_, Base::report, Base::rest_sums,
        Base::reused, Base::right, Base::row_, Base::scratch_, Base::side_, Base::stage,
        Base::step_, Base::store_columns_of, Base::stored_, Base::sums, Base::sweeps,
        Base::tables_apart, Base::tables_of, Base::tile_, Base::tile_of, Base::wait_for_all;

  public:
    __device__ explicit Sweeper(const Pass<T>& pass) : Base(pass) {
        static_assert(sizeof(Sweeper) == sizeof(Base), "what is staged begins behind the base");
    }

    __device__ void run() {
        // Set before the launch, or by none before all have arrived once.
        if (p_.bad_step[replica_] != kNoBadStep) return;
        const std::int64_t depth = p_.stack.depth;
        foresee(0);
        Ticket ticket = set_out(-1);
#pragma unroll 1
        for (std::int64_t index = -1; index < depth; ++index) {
            if (index >= 0) {
                arrive();
                if (index + 1 < depth) foresee(index + 1);
                ticket = set_out(index);
                int command = decide(index, 0);
#pragma unroll 1
                for (int round = 1; command == kRefine; ++round) {
                    refine(index);
                    arrive();
                    command = decide(index, round);
                }
                if (command == kStop) {
                    await_copies<0>();
                    return;
                }
                if (leader()) record(index);
            }
            sweep(index, ticket);
        }
        if (coupled() && p_.coupling_accumulated) square_accumulated();
        arrive();
        if (archivist()) {
            wait_for_all();
            const std::int64_t filed = depth - filing_delay();
#pragma unroll 1
            for (std::int64_t index = filed > 0 ? filed : 0; p_.rules.keep && index < depth;
                 ++index) {
                append(index);
            }
            if (coupled() && p_.coupling_accumulated) finish_coupling();
        }
    }

  private:
    // --- Sweeps ---

    // The noise of a layer, and its products with the other side: nothing that depends on the
    // layers before.
    __device__ NFD_FAST_OUTLINE void foresee(std::int64_t index) {
        if (!sweeps()) return;
        const std::int64_t layer = layer_at(index), across = rank(other(), layer);
        if (threadIdx.x == 0) {
            columns_.clear();
            columns_.add_round(blocks(batch_));
            if (reused()) add_run(p_.basis[other()] + tables_of(layer), across);
        }
        Ticket ticket = columns_.begin();
        for_tiles([&](std::int64_t chunk, std::int64_t tile, bool first) {
            const Products to = products_of(sums(index, chunk), layer);
#pragma unroll 1
            for (std::int64_t b0 = 0; b0 < batch_; b0 += N) {
                const std::int64_t count = held(batch_ - b0);
                // What was drawn before has served: there was a barrier since, and will be.
                draw(index, tile, b0, count);
                if (!reused()) continue;
                multiply_columns(ticket, across, right(), count, to.z + b0, batch_, first);
            }
        });
    }

    // Asks for what the sweep that follows will use, as far as it can be known before the leader
    // has spoken.
    __device__ Ticket set_out(std::int64_t index) {
        if (!sweeps()) return {};
        __syncthreads();  // the plan before has served
        if (threadIdx.x == 0) plan(index, expected(index));
        return columns_.begin();
    }
    __device__ Itinerary expected(std::int64_t index) const {
        if (index < 0) return {};
        const std::int64_t p = rank(side_, layer_at(index)), q = rank(other(), layer_at(index));
        const std::int64_t places = (p_.rules.keep ? memory_.capacity : n_) - p;
        const std::int64_t fresh = batch_ < places ? batch_ : places;
        return {p, q, p_.rules.keep ? blocks(fresh) : 0,
                coupled() || (q > 0 && (p_.rules.learns || (reused() && fresh > 0)))};
    }
    __device__ Itinerary actual() const {
        return {step_.p, step_.q, p_.rules.keep ? blocks(step_.rank) : 0, reads_other()};
    }

    // The update of a layer and the reductions for the next.
    __device__ void sweep(std::int64_t index, Ticket ticket) {
        if (!sweeps()) return;
        if (index >= 0 && !(actual() == planned_)) {
            __syncthreads();
            if (threadIdx.x == 0) plan(index, actual());
            ticket = columns_.begin();
        }
        for_tiles([&](std::int64_t chunk, std::int64_t tile, bool first) {
            T asked[N];
            if (index >= 0) {
                if (stores()) ticket = store_new(index, chunk, tile, first, ticket);
                update(index, tile, ticket, asked);
            } else if (coupled()) {
                clear_accumulated(tile);
            }
            if (index + 1 < p_.stack.depth) {
                reduce(index + 1, chunk, tile, first, ticket, asked, index >= 0 && !stored_);
            }
        });
    }

    // The columns that the sweep will use in each tile.
    __device__ NFD_FAST_OUTLINE void plan(std::int64_t index, Itinerary of) {
        planned_ = of;
        columns_.clear();
        const T* const basis = p_.basis[side_];
        const T* const other_basis = p_.basis[other()];
        if (index >= 0) {
            const std::int64_t at = tables_of(layer_at(index));
            if (of.stored > 0) {
                columns_.add_round(of.stored);
                add_run(basis + at, of.p);
                if (reused()) add_run(other_basis + at, of.q);
                columns_.add_round(of.stored);
                add_run(basis + at, of.p);
            }
            columns_.add_round(blocks(batch_));
            add_run(p_.images[side_] + at, of.p);
            columns_.add({noise_of(index, 0), batch_ * tile_, batch_});
            if (of.reads_other) add_run(other_basis + at, of.q);
        }
        if (index + 1 < p_.stack.depth) {
            const std::int64_t layer = layer_at(index + 1), at = tables_of(layer);
            const std::int64_t across = rank(other(), layer);
            columns_.add_round(blocks(batch_));
            add_run(basis + at, rank(side_, layer));
            if (reused()) {
                add_run(p_.images[other()] + at, across);
            }
        }
    }
    __device__ NFD_FAST_OUTLINE void add_run(const T* table, std::int64_t columns) {
        columns_.add({table, tables_apart(), columns});
    }
    __device__ static std::int64_t blocks(std::int64_t columns) { return (columns + N - 1) / N; }
    __device__ bool stores() const { return p_.rules.keep && step_.rank > 0; }
    __device__ bool reads_other() const { return step_.uses_other || coupled(); }

    // Inner products of a layer's block with everything it will be compared with; `asked` is the
    // block where it is `known`.
    __device__ __forceinline__ void reduce(std::int64_t index, std::int64_t chunk,
                                           std::int64_t tile, bool first, Ticket& ticket,
                                           const T (&asked)[N], bool known) {
        const std::int64_t layer = layer_at(index);
        const std::int64_t own = rank(side_, layer), across = rank(other(), layer);
        const Products to = products_of(sums(index, chunk), layer);
        T* block = block_of(p_.block, tile);
        const Neuron neuron = neuron_of(tile);
#pragma unroll 1
        for (std::int64_t b0 = 0; b0 < batch_; b0 += N) {
            const std::int64_t count = held(batch_ - b0);
            T value[N];
#pragma unroll
            for (int b = 0; b < N; ++b) value[b] = known ? asked[b] : T(0);
            if (!known) {
                load_asked(layer, count, neuron, [&](int b) { return b0 + b; }, value);
            }
            if (stored_) store_columns_of(neuron, value, count, block + b0 * tile_);
            __syncthreads();  // what was staged has served
            stage(neuron, value);
            __syncthreads();
            if (!stored_) {
                products(place_of(left()), static_cast<int>(count), place_of(right()),
                         static_cast<int>(count), to.zz, batch_, first);
            }
            multiply_columns(ticket, own, right(), count, to.b + b0, batch_, first);
            if (reused()) {
                multiply_columns(ticket, across, right(), count, to.s + b0, batch_, first);
            }
        }
        if (stored_) gram(tile, block, batch_, to.zz, first);
    }

    // The sweep of a round for a nearly dependent block.
    __device__ NFD_FAST_OUTLINE void refine(std::int64_t index) {
        if (!sweeps()) return;
        if (threadIdx.x == 0) {
            const std::int64_t at = tables_of(layer_at(index));
            planned_ = {};
            columns_.clear();
            columns_.add_round(blocks(batch_));
            add_run(p_.basis[side_] + at, step_.p);
            columns_.add_round(blocks(batch_));
            add_run(p_.basis[side_] + at, step_.p);
            if (reused()) add_run(p_.images[other()] + at, step_.q);
        }
        Ticket ticket = columns_.begin();
        for_tiles([&](std::int64_t chunk, std::int64_t tile, bool first) {
            subtract(index, chunk, tile, first, ticket);
        });
    }
    __device__ void subtract(std::int64_t index, std::int64_t chunk, std::int64_t tile, bool first,
                             Ticket& ticket) {
        const std::int64_t layer = layer_at(index);
        T* block = block_of(p_.block, tile);
        const Neuron neuron = neuron_of(tile);
#pragma unroll 1
        for (std::int64_t b0 = 0; b0 < batch_; b0 += N) {
            const std::int64_t count = held(batch_ - b0);
            T sum[N];
            load_residual(layer, tile, count, neuron, [&](int b) { return b0 + b; }, sum);
            add_columns(ticket, neuron, step_.p, step_.off_basis + b0, row_, sum);
            store_columns_of(neuron, sum, count, block + b0 * tile_);
        }
#pragma unroll 1
        for (std::int64_t j = 1; j < batch_ && neuron.mine; ++j) {
            if (!step_.open[j]) continue;
            T sum = block[j * tile_ + neuron.i];
#pragma unroll 1
            for (std::int64_t m = 0; m < j; ++m) {
                sum = fused_multiply_add(block[m * tile_ + neuron.i], step_.off_block[j * row_ + m],
                                         sum);
            }
            block[j * tile_ + neuron.i] = sum;
        }
        const Products to = products_of(rest_sums(chunk), layer);
#pragma unroll 1
        for (std::int64_t b0 = 0; b0 < batch_; b0 += N) {
            const std::int64_t count = held(batch_ - b0);
            T value[N];
            load_columns(neuron, block + b0 * tile_, count, value);
            __syncthreads();  // what was staged has served
            stage(neuron, value);
            __syncthreads();
            multiply_columns(ticket, step_.p, right(), count, to.b + b0, batch_, first);
            if (reused()) {
                multiply_columns(ticket, step_.q, right(), count, to.s + b0, batch_, first);
            }
        }
        gram(tile, block, batch_, to.zz, first);
    }

    // Makes the next features or adjoints, and of them what the next layer is asked about.
    __device__ __forceinline__ void update(std::int64_t index, std::int64_t tile, Ticket& ticket,
                                           T (&asked)[N]) {
        const std::int64_t layer = layer_at(index);
        T* accumulated = coupled() ? block_of(p_.accumulated, tile) : nullptr;
        const T* before = features(layer - 1);
        const T* above = forward() ? nullptr : adjoints(layer);
        T* out = forward() ? features(layer) : adjoints(layer - 1);
        const T scale = static_cast<T>(p_.stack.branch_factor);
        const Neuron neuron = neuron_of(tile);
        bool finite = true;
#pragma unroll 1
        for (std::int64_t b0 = 0; b0 < batch_; b0 += N) {
            const std::int64_t count = held(batch_ - b0);
            // Asked for now, used when the columns have been added up.
            T below[N], carried[N];
#pragma unroll
            for (int b = 0; b < N; ++b) {
                const bool is = neuron.there && b < count;
                const std::int64_t at = (b0 + b) * n_ + neuron.number;
                below[b] = is ? before[at] : T(0);
                carried[b] = is && !forward() && p_.stack.skip ? above[at] : T(0);
            }
            T sum[N];
#pragma unroll
            for (int b = 0; b < N; ++b) sum[b] = T(0);
            add_columns(ticket, neuron, step_.p, step_.images + b0, row_, sum);
            add_columns(ticket, neuron, batch_, step_.noise + b0, row_, sum);
            if (reads_other()) add_other(ticket, neuron, accumulated, b0, count, sum);
            if (forward()) {
#pragma unroll
                for (int b = 0; b < N; ++b) sum[b] += p_.stack.skip ? below[b] : T(0);
            } else {
                differentiate(p_.stack.activation, below);
#pragma unroll
                for (int b = 0; b < N; ++b) {
                    const T slope = scale * below[b];
                    sum[b] = fused_multiply_add(slope, sum[b], carried[b]);
                }
            }
#pragma unroll
            for (int b = 0; b < N; ++b) {
                if (!neuron.there || b >= count) continue;
                out[(b0 + b) * n_ + neuron.number] = sum[b];
                finite = finite && sum[b] - sum[b] == T(0);
            }
            if (stored_) continue;  // from memory, then
            ask(neuron, count, sum);
#pragma unroll
            for (int b = 0; b < N; ++b) asked[b] = sum[b];
        }
        if (!finite) report(index + 1);
    }
    // The other side's part, and that of it which the coupling is.
    __device__ __forceinline__ void add_other(Ticket& ticket, const Neuron& neuron, T* accumulated,
                                              std::int64_t b0, std::int64_t count, T (&sum)[N]) {
        T coupling[N];
        load_columns(neuron, accumulated + b0 * tile_, accumulated ? count : 0, coupling);
        columns_.for_columns(ticket, step_.q, [&](const T* piece, int first, int columns) {
            if (!neuron.mine) return;
            const std::int64_t at = first * row_ + b0;
            if (step_.uses_other) {
                combine<N>(piece, neuron.i, apart(), columns, step_.other + at, row_, sum);
            }
            if (accumulated) {
                combine<N>(piece, neuron.i, apart(), columns, step_.coupling + at, row_, coupling);
            }
        });
        if (accumulated) store_columns_of(neuron, coupling, count, accumulated + b0 * tile_);
    }

    // The new columns of the basis and their images, and the products by which they are measured.
    __device__ NFD_FAST_OUTLINE Ticket store_new(std::int64_t index, std::int64_t chunk,
                                                 std::int64_t tile, bool first, Ticket ticket) {
        const std::int64_t layer = layer_at(index), p = step_.p, q = step_.q, rank = step_.rank;
        const int row = static_cast<int>(p_.rules.padded(rank));
        T* fresh = tile_of(p_.basis[side_], layer, tile) + p * tile_;
        T* image = tile_of(p_.images[side_], layer, tile) + p * tile_;
        const T* xi = noise_of(index, tile);
        double* const to = measured(index, chunk);
        const Neuron neuron = neuron_of(tile);
#pragma unroll 1
        for (std::int64_t r0 = 0; r0 < rank; r0 += N) {
            const std::int64_t count = held(rank - r0);
            T sum[N], shifted[N];
            load_residual(
                layer, tile, count, neuron, [&](int r) { return step_.pivot[r0 + r]; }, sum);
#pragma unroll
            for (int r = 0; r < N; ++r) {
                shifted[r] =
                    neuron.mine && r < count ? xi[step_.pivot[r0 + r] * tile_ + neuron.i] : T(0);
            }
            add_columns(ticket, neuron, p, step_.from_basis + r0, row, sum);
            if (rank <= N) {
                // All at hand: the triangle at once.
                T direction[N];
#pragma unroll
                for (int r = 0; r < N; ++r) {
                    direction[r] = T(0);
#pragma unroll
                    for (int m = 0; m <= r; ++m) {
                        if (r >= count) continue;
                        direction[r] =
                            fused_multiply_add(sum[m], step_.inverse[m * row + r], direction[r]);
                    }
                }
                __syncthreads();  // what was staged for the tile before has served
                stage(neuron, direction);
                store_columns_of(neuron, direction, count, fresh);
            } else {
                store_columns_of(neuron, sum, count, fresh + r0 * tile_);
            }
            if (reused()) {
                add_columns(ticket, neuron, q, step_.image_shift + r0, row, shifted);
            }
            store_columns_of(neuron, shifted, count, image + r0 * tile_);
        }
        // In place from the last on: a direction needs those before it alone.
#pragma unroll 1
        for (std::int64_t r = rank; rank > N && neuron.mine && r-- > 0;) {
            T direction = T(0);
#pragma unroll 1
            for (std::int64_t m = 0; m <= r; ++m) {
                direction = fused_multiply_add(fresh[m * tile_ + neuron.i],
                                               step_.inverse[m * row + r], direction);
            }
            fresh[r * tile_ + neuron.i] = direction;
        }
#pragma unroll 1
        for (std::int64_t r0 = 0; r0 < rank; r0 += N) {
            const std::int64_t count = held(rank - r0);
            if (rank > N) {
                T value[N];
                load_columns(neuron, fresh + r0 * tile_, count, value);
                __syncthreads();
                stage(neuron, value);
            }
            __syncthreads();
            if (rank <= N) {
                products(place_of(left()), static_cast<int>(rank), place_of(right()),
                         static_cast<int>(rank), to + p * rank, rank, first);
            }
            multiply_columns(ticket, p, right(), count, to + r0, rank, first);
        }
        if (rank > N) gram(tile, fresh, rank, to + p * rank, first);
        return ticket;
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
};

template <class T, int N>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce) pass_over_layers(const
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
