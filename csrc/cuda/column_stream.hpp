// Columns of a block's tiles on their way into shared memory.
//
// A sweep uses each column once, in an order that is known before it begins. So they are asked for
// in that order, pieces of some kilobytes at a time, as far ahead as shared memory has room: while
// the block works on one piece (or draws noise, or waits for itself) the next ones arrive.
#pragma once

#include <cstdint>

#include "cuda/device.hpp"
#include "cuda/reduction.hpp"

namespace nfd_fast::cuda {

// The tiles of one block among those that share a replica, in the order of its sweep: tiles chunk,
// chunk + chunks, ... for every chunk of its own.
struct TileOrder {
    std::int64_t tiles, chunks, first, step;  // its chunks first, first + step, ...

    struct Place {
        std::int64_t chunk, tile;
    };
    __device__ Place begin() const { return {first, first}; }
    __device__ bool has(const Place& at) const { return at.chunk < chunks; }
    __device__ void advance(Place& at) const {
        at.tile += chunks;
        if (at.tile >= tiles) at.tile = at.chunk += step;
    }
};

// Lives in shared memory; what is said of "all" is called by all threads of the block.
template <class T, int Threads>
class ColumnStream {
  public:
    // Columns that lie one after the other in each tile: of the first tile, and how far apart tiles
    // are.
    struct Run {
        const T* first;
        std::int64_t apart, columns;
    };

    // Where a thread is: the slot of the next piece, and the note of the next one to be asked for.
    struct Ticket {
        int slot, note;
    };

    // Between two columns of a piece, so that neighbouring ones begin in banks of their own.
    static constexpr int kGap = 16 / static_cast<int>(sizeof(T));

    // From byte `ring` of shared memory on there is room for `slots` pieces of so many columns that
    // are `tile` long, both powers of two; of at most 16 bytes to a thread.
    __device__ ColumnStream(std::int64_t ring, int slots, int piece_columns, int tile,
                            TileOrder order)
        : ring_(static_cast<int>(ring)),
          slots_(slots),
          piece_columns_(piece_columns),
          tile_(tile),
          piece_shift_(shift_of(piece_columns)),
          column_shift_(shift_of(tile * static_cast<int>(sizeof(T)))),
          order_(order) {}

    static std::int64_t piece_bytes(std::int64_t columns, std::int64_t tile) {
        return columns * (tile + kGap) * static_cast<std::int64_t>(sizeof(T));
    }
    // How many pieces there is room for: as many as can be waited for apart.
    static int slots_for(std::int64_t bytes, std::int64_t columns, std::int64_t tile) {
        const std::int64_t room = bytes / piece_bytes(columns, tile);
        return room >= 8 ? 8 : room >= 6 ? 6 : room < 2 ? 0 : static_cast<int>(room < 4 ? room : 4);
    }

    // --- The plan of a sweep, made by one thread: what it uses in every tile ---

    __device__ void clear() { rounds_ = runs_ = pieces_ = 0; }
    // The runs that are added next come one after the other, `times` times over.
    __device__ void add_round(std::int64_t times) { round_[rounds_++] = {runs_, 0, 0, times}; }
    __device__ void add(Run run) {
        Round& round = round_[rounds_ - 1];
        const std::int64_t pieces = pieces_of(run);
        run_[runs_++] = run;
        ++round.runs;
        round.pieces += pieces;
        pieces_ += round.times * pieces;
    }

    // --- The sweep, by all ---

    // Begins to ask. Everything the plan speaks of must be there; what was asked for by an earlier
    // plan and never used is dropped.
    __device__ Ticket begin() {
        await_copies<0>();
        __syncthreads();
        if (looks_ahead()) {
            if (threadIdx.x == Threads - kWarp) next_ = {order_.begin(), 0};
            look_ahead(0);
        }
        __syncthreads();
#pragma unroll 1
        for (int slot = 0; slot + 1 < slots_; ++slot) ask(slot, slot);
        if (looks_ahead()) look_ahead(1);
        return {0, slots_ - 1};
    }

    // Calls f(columns, first, count) for the columns of the next run, some at a time: `columns` are
    // numbers first ... first + count - 1, in shared memory, tile + kGap numbers apart. All threads
    // have arrived by then.
    template <class F>
    __device__ __forceinline__ void for_columns(Ticket& ticket, std::int64_t columns, F f) {
        const int all = static_cast<int>(columns);
#pragma unroll 1
        for (int first = 0; first < all; first += piece_columns_) {
            const T* piece = next(ticket);
            f(piece, first, all - first < piece_columns_ ? all - first : piece_columns_);
        }
    }

    __device__ static int shift_of(int power_of_two) {
        int shift = 0;
        while (1 << shift < power_of_two) ++shift;
        return shift;
    }

  private:
    struct Round {
        int first, runs;             // its runs
        std::int64_t pieces, times;  // of each time, and how often
    };
    struct Piece {
        const T* from;
        int bytes;  // 0 behind the last one
    };
    // A piece of a tile, by its number in the plan.
    struct Place {
        TileOrder::Place tile;
        std::int64_t piece;
    };
    // Notes of pieces to be asked for: one half is written while the other is read.
    static constexpr int kHalf = 16;

    // Waits for the next piece, and asks for another one where the one before it was: all have done
    // with that.
    __device__ __forceinline__ const T* next(Ticket& ticket) {
        const int slot = ticket.slot;
        switch (slots_) {
            case 8:
                await_copies<6>();
                break;
            case 6:
                await_copies<4>();
                break;
            case 4:
                await_copies<2>();
                break;
            case 3:
                await_copies<1>();
                break;
            default:
                await_copies<0>();
        }
        __syncthreads();
        ask(slot == 0 ? slots_ - 1 : slot - 1, ticket.note);
        if (ticket.note % kHalf == 0 && looks_ahead()) look_ahead(1 - ticket.note / kHalf);
        ticket = {slot + 1 == slots_ ? 0 : slot + 1, (ticket.note + 1) % (2 * kHalf)};
        return piece_at(slot);
    }

    __device__ int with_gaps(int bytes) const {
        return bytes + (bytes >> column_shift_) * kGap * static_cast<int>(sizeof(T));
    }
    // By a place, not a pointer: then it is known to be in shared memory.
    __device__ T* piece_at(int slot) const {
        return reinterpret_cast<T*>(shared_memory<unsigned char>() + ring_) +
               slot * piece_columns_ * (tile_ + kGap);
    }

    __device__ __forceinline__ void ask(int slot, int note) const {
        const Piece piece = note_[note];
        const int start = static_cast<int>(threadIdx.x) * 16;
        auto* to = reinterpret_cast<unsigned char*>(piece_at(slot)) + with_gaps(start);
        const auto* from = reinterpret_cast<const unsigned char*>(piece.from) + start;
        // The block takes whole columns at a time, so that a thread goes on at the same place of
        // another one.
        const int step = with_gaps(Threads * 16);
#pragma unroll 4
        for (int left = piece.bytes - start; left > 0; left -= Threads * 16) {
            copy_ahead<16>(to, from);
            to += step;
            from += Threads * 16;
        }
        close_copies();  // empty ones count as well
    }

    // One warp works out which pieces come next, a lane each: one thread alone would take longer
    // than the block takes to use a piece.
    __device__ static bool looks_ahead() {
        return static_cast<int>(threadIdx.x) >= Threads - kWarp;
    }
    __device__ NFD_FAST_OUTLINE void look_ahead(int half) {
        const int lane = static_cast<int>(threadIdx.x) % kWarp;
        __syncwarp();  // what the last call left is there
        Place at = next_;
        __syncwarp();
        if (lane > kHalf) return;
        at.piece += lane;
        if (pieces_ == 0) at.tile.chunk = order_.chunks;
#pragma unroll 1
        while (order_.has(at.tile) && at.piece >= pieces_) {
            at.piece -= pieces_;
            order_.advance(at.tile);
        }
        if (lane == kHalf) {
            next_ = at;
        } else {
            note_[half * kHalf + lane] = piece_of(at);
        }
    }
    __device__ std::int64_t pieces_of(const Run& run) const {
        return (static_cast<int>(run.columns) + piece_columns_ - 1) >> piece_shift_;
    }
    __device__ Piece piece_of(const Place& at) const {
        if (!order_.has(at.tile)) return {nullptr, 0};
        std::int64_t piece = at.piece;
        const Round* round = round_;
        for (; piece >= round->times * round->pieces; ++round) {
            piece -= round->times * round->pieces;
        }
        while (piece >= round->pieces) piece -= round->pieces;
        const Run* run = run_ + round->first;
        for (; piece >= pieces_of(*run); ++run) piece -= pieces_of(*run);
        const std::int64_t column = piece * piece_columns_, left = run->columns - column;
        const std::int64_t count = left < piece_columns_ ? left : piece_columns_;
        return {run->first + at.tile.tile * run->apart + column * tile_,
                static_cast<int>(count * tile_ * static_cast<std::int64_t>(sizeof(T)))};
    }

    const int ring_, slots_, piece_columns_, tile_, piece_shift_, column_shift_;
    const TileOrder order_;
    int rounds_ = 0, runs_ = 0;
    std::int64_t pieces_ = 0;  // of a tile
    Round round_[4];
    Run run_[9];
    Place next_;
    Piece note_[2 * kHalf];
};

}  // namespace nfd_fast::cuda
