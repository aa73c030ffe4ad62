// What a block of the conditional engine works with on a tile: columns that come through the
// stream, the block of columns that is staged in shared memory, and the products of the two.
//
// A tile has its columns one after the other, and they come through a ColumnStream: what is written
// in a sweep is not in it. In an update a thread has a neuron, and adds up columns times
// coefficients. In a reduction a warp has some columns and a slice of the neurons; the block that
// they are compared with is staged in float64. Sums over the slices and over the tiles of a chunk
// are added in order.
#pragma once

#include <cstdint>

#include "cuda/activate.hpp"
#include "cuda/conditional_member.hpp"
#include "cuda/noise_block.hpp"

namespace nfd_fast::cuda {
namespace conditional {

// For batches of which a thread holds N columns at once.
template <class T, int N>
class Workbench : public Member<T> {
    using Base = Member<T>;

  public:
    // Shared memory of a block: itself, what it stages, what the base keeps, and the pieces of the
    // stream or, for the leader, a layer's matrices.
    static NFD_FAST_HD std::int64_t fixed_bytes(const Pass<T>& p) {
        return after_staged(p) + Base::shared_bytes(p);
    }
    static std::int64_t shared_bytes(const Pass<T>& p) {
        const std::int64_t pieces = p.slots * Columns::piece_bytes(p.piece_columns, p.tile_width);
        const std::int64_t matrices = p.matrices_near ? Base::matrices_bytes(p) : 0;
        return fixed_bytes(p) + (pieces > matrices ? pieces : matrices);
    }

  protected:
    // What the base has; a template's base must be named.
    using Base::adjoints, Base::batch_, Base::block_of, Base::features, Base::forward,
        Base::layer_at, Base::n_, Base::noise_of, Base::p_, Base::replica_, Base::rounded,
        Base::step_, Base::tile_, Base::tiles;

    using Columns = ColumnStream<T, kThreads>;
    using Ticket = typename Columns::Ticket;

    __device__ explicit Workbench(const Pass<T>& pass)
        : Base(pass, shared(after_staged(pass)), shared(fixed_bytes(pass))),
          stored_(batch_ > N),
          slice_shift_(Columns::shift_of(tile_ / kSlice)),
          columns_(fixed_bytes(pass), pass.slots, pass.piece_columns, tile_, tiles()) {}

    // --- What is staged ---

    __device__ static unsigned char* shared(std::int64_t at) {
        return shared_memory<unsigned char>() + at;
    }
    __device__ static int place_of(const void* in_shared_memory) {
        return static_cast<int>(static_cast<const unsigned char*>(in_shared_memory) - shared(0));
    }
    // Columns of a block, or of noise: (tile, N) in float64, and (N, tile + kGap) as they are.
    static NFD_FAST_HD std::int64_t right_at() { return rounded(sizeof(Workbench)); }
    static NFD_FAST_HD std::int64_t left_at(std::int64_t tile) { return right_at() + N * tile * 8; }
    // (slices, columns, N) sums over the slices of a tile.
    static NFD_FAST_HD std::int64_t slices_at(std::int64_t tile) {
        return left_at(tile) + N * (tile + Columns::kGap) * static_cast<std::int64_t>(sizeof(T));
    }
    static NFD_FAST_HD std::int64_t after_staged(const Pass<T>& p) {
        const std::int64_t columns = p.piece_columns > N ? p.piece_columns : N;
        return rounded(slices_at(p.tile_width) + p.tile_width / kSlice * columns * N * 8);
    }
    __device__ double* right() const { return reinterpret_cast<double*>(shared(right_at())); }
    __device__ T* left() const { return reinterpret_cast<T*>(shared(left_at(tile_))); }

    // This thread's neuron in a tile, if it has one; beyond the width is nothing.
    struct Neuron {
        int i;
        bool mine;
        std::int64_t number;
        bool there;
    };
    __device__ Neuron neuron_of(std::int64_t tile) const {
        const int i = static_cast<int>(threadIdx.x);
        const std::int64_t number = tile * tile_ + i;
        return {i, i < tile_, number, i < tile_ && number < n_};
    }
    __device__ void stage(const Neuron& neuron, const T (&value)[N]) const {
        if (!neuron.mine) return;
        double wide[N];
#pragma unroll
        for (int b = 0; b < N; ++b) {
            left()[b * apart() + neuron.i] = value[b];
            wide[b] = static_cast<double>(value[b]);
        }
        store_row<N>(wide, right() + neuron.i * N);
    }
    // Columns of a piece, and the ones that are staged as they are.
    __device__ int apart() const { return tile_ + Columns::kGap; }
    // Columns b < count of a tile of an array, the rest is zero.
    __device__ void load_columns(const Neuron& neuron, const T* from, std::int64_t count,
                                 T (&value)[N]) const {
#pragma unroll
        for (int b = 0; b < N; ++b) {
            value[b] = neuron.mine && b < count ? from[b * tile_ + neuron.i] : T(0);
        }
    }
    __device__ void store_columns_of(const Neuron& neuron, const T (&value)[N], std::int64_t count,
                                     T* to) const {
#pragma unroll
        for (int b = 0; b < N; ++b) {
            if (neuron.mine && b < count) to[b * tile_ + neuron.i] = value[b];
        }
    }
    __device__ static std::int64_t held(std::int64_t left) { return left < N ? left : N; }

    // --- Columns that come through the stream ---

    // sum[b] += columns of the next run times coefficients (columns, row) from column b on.
    __device__ __forceinline__ void add_columns(Ticket& ticket, const Neuron& neuron,
                                                std::int64_t columns, const T* coefficients,
                                                int row, T (&sum)[N]) {
        columns_.for_columns(ticket, columns, [&](const T* piece, int first, int count) {
            if (!neuron.mine) return;
            combine<N>(piece, neuron.i, apart(), count, coefficients + first * row, row, sum);
        });
    }
    // sums[j * stride + b] (+)= column j of the next run times staged column b < staged.
    __device__ __forceinline__ void multiply_columns(Ticket& ticket, std::int64_t columns,
                                                     const double* staged, std::int64_t count,
                                                     double* sums, std::int64_t stride,
                                                     bool first_tile) {
        columns_.for_columns(ticket, columns, [&](const T* piece, int first, int columns_here) {
            products(place_of(piece), columns_here, place_of(staged), static_cast<int>(count),
                     sums + first * stride, stride, first_tile);
        });
    }

    // The same for columns that lie in shared memory. A warp takes a group of columns and a slice
    // of the neurons: neighbouring lanes have a neuron in common, whose staged numbers they then
    // read as one, and four lanes a column.
    __device__ NFD_FAST_OUTLINE void products(int columns_place, int count, int staged_place,
                                              int staged, double* sums, std::int64_t stride,
                                              bool first) const {
        constexpr int lanes = kWarp / kGroup;
        constexpr int at_once = N < lanes ? N : lanes;  // sums that the lanes share out
        const int shift = slice_shift_, slices = 1 << shift, between = apart();
        const int warp = static_cast<int>(threadIdx.x) / kWarp;
        const int lane = static_cast<int>(threadIdx.x) % kWarp, mine = lane / kGroup;
        auto* const of_slices = reinterpret_cast<double*>(shared(slices_at(tile_)));
#pragma unroll 1
        for (int unit = warp; unit < (count + kGroup - 1) / kGroup << shift; unit += kWarps) {
            const int slice = unit & (slices - 1), start = slice * kSlice + mine;
            const int j = (unit >> shift) * kGroup + lane % kGroup;
            const T* column = reinterpret_cast<const T*>(shared(columns_place)) +
                              (j < count ? j : count - 1) * between + start;
            const double* right = reinterpret_cast<const double*>(shared(staged_place)) + start * N;
            double sum[N];
#pragma unroll
            for (int b = 0; b < N; ++b) sum[b] = 0;
#pragma unroll 8
            for (int i = 0; i < kSlice; i += lanes) {
                const auto value = static_cast<double>(column[i]);
                double factor[N];
                load_row<N>(right + i * N, factor);
#pragma unroll
                for (int b = 0; b < N; ++b) sum[b] = fused_multiply_add(value, factor[b], sum[b]);
            }
#pragma unroll
            for (int b0 = 0; b0 < N; b0 += at_once) {
                double part[at_once];
#pragma unroll
                for (int b = 0; b < at_once; ++b) part[b] = sum[b0 + b];
                const double total = sums_over_warp<at_once, kWarp / 2, kGroup>(part);
                if (mine % (lanes / at_once) == 0 && j < count) {
                    of_slices[(slice * count + j) * N + b0 + mine / (lanes / at_once)] = total;
                }
            }
        }
        __syncthreads();
#pragma unroll 1
        for (int k = static_cast<int>(threadIdx.x); k < count * N; k += kThreads) {
            const int b = k % N;
            if (b >= staged) continue;
            // All are read before the first is added.
            double of_slice[kTile / kSlice];
#pragma unroll
            for (int slice = 0; slice < kTile / kSlice; ++slice) {
                of_slice[slice] = slice < slices ? of_slices[slice * count * N + k] : 0.0;
            }
            double total = of_slice[0];
#pragma unroll
            for (int slice = 1; slice < kTile / kSlice; ++slice) total += of_slice[slice];
            double* to = sums + k / N * stride + b;
            // Nobody else adds to it, so the sum has an order.
            if (first) {
                *to = total;
            } else {
                add_apart(to, total);
            }
        }
    }

    // The Gram of columns of a tile that lie in the device's memory.
    __device__ NFD_FAST_OUTLINE void gram(std::int64_t tile, const T* from, std::int64_t columns,
                                          double* to, bool first) const {
        const Neuron neuron = neuron_of(tile);
#pragma unroll 1
        for (std::int64_t b0 = 0; b0 < columns; b0 += N) {
#pragma unroll 1
            for (std::int64_t c0 = 0; c0 < columns; c0 += N) {
                T value[N], factor[N];
                load_columns(neuron, from + c0 * tile_, held(columns - c0), value);
                load_columns(neuron, from + b0 * tile_, held(columns - b0), factor);
                __syncthreads();  // what was staged has served
                stage(neuron, factor);
#pragma unroll
                for (int b = 0; b < N; ++b) {
                    if (neuron.mine) left()[b * apart() + neuron.i] = value[b];
                }
                __syncthreads();
                products(place_of(left()), static_cast<int>(held(columns - c0)), place_of(right()),
                         static_cast<int>(held(columns - b0)), to + c0 * columns + b0, columns,
                         first);
            }
        }
    }

    // Entries of the block that a layer is asked about, phi(H_{l-1}) or G_l: columns column(b) for
    // b < count, the rest is zero.
    template <class F>
    __device__ void load_asked(std::int64_t layer, std::int64_t count, const Neuron& neuron,
                               F column, T (&value)[N]) const {
        const T* from = forward() ? features(layer - 1) : adjoints(layer);
#pragma unroll
        for (int b = 0; b < N; ++b) {
            value[b] = neuron.there && b < count ? from[column(b) * n_ + neuron.number] : T(0);
        }
        ask(neuron, count, value);
    }
    // The same from features or adjoints.
    __device__ void ask(const Neuron& neuron, std::int64_t count, T (&value)[N]) const {
        if (forward()) activate(p_.stack.activation, value);
        // Some activations are not zero at zero.
#pragma unroll
        for (int b = 0; b < N; ++b) {
            if (!neuron.there || b >= count) value[b] = T(0);
        }
    }
    // The same of the block Z in whose columns the new directions are.
    template <class F>
    __device__ void load_residual(std::int64_t layer, std::int64_t tile, std::int64_t count,
                                  const Neuron& neuron, F column, T (&value)[N]) const {
        if (!stored_ && !step_.refined) return load_asked(layer, count, neuron, column, value);
        const T* from = block_of(p_.block, tile) + neuron.i;
#pragma unroll
        for (int b = 0; b < N; ++b) {
            value[b] = neuron.mine && b < count ? from[column(b) * tile_] : T(0);
        }
    }

    // xi of a layer for columns first ... first + count - 1 of one tile, kept and staged.
    __device__ void draw(std::int64_t index, std::int64_t tile, std::int64_t first,
                         std::int64_t count) const {
        const std::int64_t layer = layer_at(index);
        const nfd_fast::Stream stream =
            forward() ? nfd_fast::Stream::forward_noise : nfd_fast::Stream::backward_noise;
        const T scale = static_cast<T>(1 / ::sqrt(static_cast<double>(p_.fine)));
        const std::uint64_t seed = p_.seeds[replica_];
        const int quads = tile_ / 4;
        double* const staged = right();
#pragma unroll 1
        for (int unit = static_cast<int>(threadIdx.x); unit < quads * N; unit += kThreads) {
            const int b = unit % N, i = unit / N * 4;
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
                T* to = noise_of(index, tile) + (first + b) * tile_ + i;
#pragma unroll
                for (int m = 0; m < 4; ++m) {
                    if (p_.fine > 1) z.value[m] *= scale;
                    if (neuron + m >= n_) z.value[m] = T(0);
                }
                *reinterpret_cast<Four<T>*>(to) = z;
            }
#pragma unroll
            for (int m = 0; m < 4; ++m) {
                staged[(i + m) * N + b] = static_cast<double>(z.value[m]);
            }
        }
    }

    // What a sweep is planned by: columns of both sides, how often the new ones of a layer are gone
    // through, and whether the other side is read for the update.
    struct Itinerary {
        std::int64_t p = -1, q = -1, stored = -1;
        bool reads_other = false;

        __device__ bool operator==(const Itinerary& o) const {
            return p == o.p && q == o.q && stored == o.stored && reads_other == o.reads_other;
        }
    };

    const bool stored_;      // whether the block is kept whole, since more than N columns are asked
    const int slice_shift_;  // of how many slices a tile has
    Columns columns_;
    Itinerary planned_;
};

}  // namespace conditional
}  // namespace nfd_fast::cuda
