// The conditional engine on a GPU: layer_algebra.hpp's representation, a launch per pass
// (conditional_sweeper.hpp). Here are its memory and its launches.

#include <algorithm>
#include <string>
#include <type_traits>

#include "cuda/conditional_sweeper.hpp"
#include "cuda/engine.hpp"
#include "cuda/replicas.hpp"

namespace nfd_fast::cuda {
namespace conditional {

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

    // The sizes that depend on the problem alone, and with them all bits.
    static Pass<T> sizes(const Problem<T>& p) {
        Pass<T> pass{};
        const std::int64_t width = p.stack.width, batch = p.stack.batch;
        pass.stack = p.stack;
        pass.memory.capacity = std::min((p.first_update + p.updates) * batch, width);
        pass.memory.stride = pass.memory.capacity;
        pass.tile_width = width >= kWide ? kTile : kNarrowTile;
        pass.tiles = (width + pass.tile_width - 1) / pass.tile_width;
        const std::int64_t most = (pass.tiles + kMostChunks - 1) / kMostChunks;  // of a chunk
        pass.chunks = (pass.tiles + most - 1) / most;
        pass.fine = p.fine;
        const std::int64_t capacity = pass.memory.capacity;
        const double of_basis = static_cast<double>(capacity), rows = static_cast<double>(batch);
        const double measure = (of_basis + rows) * rows;
        pass.slot_size = as_size(std::max(Products::count(of_basis, of_basis, rows), measure));
        pass.measure_size = as_size(measure);
        const std::int64_t columns = held(batch);
        const std::int64_t padded = (batch + columns - 1) / columns * columns;
        Arena arena(nullptr);
        Step<T> step{};
        pass.applied = as_size(step.lay_out(arena, capacity, batch, padded));
        pass.step_bytes = as_size(arena.used());
        return pass;
    }

    // And what depends on the shared memory that a block may have: a step, the layer's matrices and
    // some groups of columns on their way, or as much as there is room for.
    static Pass<T> fitted(Pass<T> pass) {
        const auto column_bytes = pass.tile_width * static_cast<std::int64_t>(sizeof(T));
        const auto most = static_cast<int>(std::max<std::int64_t>(1, kPieceBytes / column_bytes));
        // At last one block to a multiprocessor, and a step that is read from the device's memory.
        for (const int blocks : {kBlocksAtOnce, 1, 0}) {
            const bool shared = pass.step_shared = blocks > 0;
            const int least = shared ? std::min(most, kGroup) : 1;
            for (pass.piece_columns = most; pass.piece_columns >= least; pass.piece_columns /= 2) {
                pass.slots = 0;
                pass.matrices_near = false;
                std::int64_t left = 0;
                with_kernel(pass, [&](auto, std::size_t taken) {
                    left =
                        most_shared_bytes(std::max(1, blocks)) - static_cast<std::int64_t>(taken);
                });
                pass.slots =
                    ColumnStream<T, kThreads>::slots_for(left, pass.piece_columns, pass.tile_width);
                pass.matrices_near = shared && Member<T>::matrices_bytes(pass) <= left;
                if (pass.slots >= 3) return pass;
            }
        }
        throw DeviceError("the device has too little shared memory for batches of " +
                          std::to_string(pass.stack.batch) + (sizeof(T) == 8 ? " in float64" : "") +
                          "; take " + (sizeof(T) == 8 ? "float32 or " : "") + "a smaller batch");
    }

    static int resident(const Pass<T>& pass) {
        int blocks = 0;
        with_kernel(pass, [&](auto kernel, std::size_t shared) {
            blocks = resident_blocks(kernel, kThreads, shared);
        });
        return blocks;
    }

    static int most_replicas(const Problem<T>& p) {
        const Pass<T> pass = fitted(sizes(p));
        // With some chunks to a block, the meetings of a layer take a small part of its time; and
        // one more block leads.
        const std::int64_t blocks = (pass.chunks + kChunksOfBlock - 1) / kChunksOfBlock + 1;
        return static_cast<int>(std::max<std::int64_t>(1, resident(pass) / blocks));
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
            arena.take(s.memory.inverse[side], square);
            arena.take(s.memory.gamma[side], square);
            arena.take(s.memory.cross[side], p.decoupled ? 0 : square);
            arena.take(s.memory.along_other[side], p.keep_coupling ? square : 0);
            arena.take(s.memory.ranks[side], count * layers);
        }
        arena.take(s.memory.learned, square);
        arena.take(s.memory.features, count * layers * columns * batch);
        arena.take(s.noise, 2 * count * batch * padded);
        arena.take(s.block, count * batch * padded);
        arena.take(s.accumulated, p.keep_coupling ? count * batch * padded : 0);
        const double chunks = static_cast<double>(s.chunks);
        arena.take(s.sums, 3 * count * chunks * static_cast<double>(s.slot_size));
        arena.take(s.measured, 2 * count * chunks * static_cast<double>(s.measure_size));
        arena.take(s.combined, 2 * count * static_cast<double>(s.slot_size));
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
        clear(pass.sums, 3 * wave.count * pass.chunks * pass.slot_size * 8);
        clear(pass.steps, 2 * wave.count * pass.step_bytes);
        for (const Side side : {kFeatures, kAdjoints}) {
            clear(pass.memory.factor[side], wave.count * squares * 8);
            clear(pass.memory.inverse[side], wave.count * squares * 8);
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
        Pass<T> s = fitted(pass);
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
        // Two more than there are chunks, if there is room: a leader and an archivist.
        s.members = static_cast<int>(std::max<std::int64_t>(
            1, std::min<std::int64_t>(s.chunks + 2, resident(s) / wave.count)));
        s.sweepers = static_cast<int>(std::min<std::int64_t>(s.chunks, std::max(1, s.members - 1)));
        // Where the pieces of the stream are, for who has none.
        s.matrices_near = s.matrices_near && s.members > 1;
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
