// The conditional engine: the same network in law without its matrices (DESIGN 2).
//
// All that the algorithm ever asks of the initial matrix W of a layer (here W/sqrt(n)) is W a for a
// few features a and W^T g for a few adjoints g, and each answer can be drawn conditionally on the
// earlier ones. A layer keeps two sides: the features asked so far with their images under W, and
// the adjoints with their images under W^T. Each side is
//     basis U (n x p), images V (n x p), both of order one per entry,
// with inner products x.y = sum_i x_i y_i / n, so that a direction u with u.u = 1 has an image of
// independent N(0, 1) entries. A new block X (n x B) is taken apart and answered so:
//     c = (U.U)^-1 U.X        E = X.X - c^T (U.U) c = T^T T       new directions u = (X - U c) T^-1
//     t = (image of the other side's basis Q under W^T).u = Q.(W u), known
//     W u = xi + Q k          k = (Q.Q)^-1 (t - Q.xi)             xi fresh, of the noise contract
//     W X = (W U) c + (W u) T
// and the learned part of the matrix is Q D U^T/n with a small D.
//
// Exactness in the stored precision. A stored u is (X - U c) T^-1 rounded: for a nearly dependent
// column the rounding, as large as eps |x|, is not small against the residual. So nothing assumes
// that U is orthonormal: U.U of the *stored* columns is measured in float64 when they are made,
// kept as its Cholesky factor R, and the image of a stored column that leans on earlier ones by
// U g, with length kappa on the new direction, is W U g + kappa v: images W U = V Gamma with a
// small upper triangular Gamma. The coefficients that are applied in T are rounded first and their
// rounded values used in the algebra.
//
// Nearly dependent blocks. E is a difference, so that a residual much shorter than its column is
// badly known from it, and X - U c in T even worse. Such a block is taken apart in rounds: in place
// of X stands Z with X = U A + Z M, at first Z = X; where a column is too close to what comes
// before it (see kClearlyNew), one more sweep replaces each column by what is left of it, as far as
// that is known, and measures again. What ends up as a stored direction was always measured, never
// inferred; what is shorter than the tolerance is none.
//
// Sweeps and barriers. Per layer and pass each neuron is visited once: the update of a layer and
// the reductions for the next touch the same neuron, so they share a visit, with one barrier a
// layer. The small algebra in between is repeated by every thread, which costs less than a second
// barrier. A round for a nearly dependent block adds one sweep and two barriers: one before its
// sums are read, one before their place is used again.

#include <limits>
#include <stdexcept>

#include "cpu/replica.hpp"
#include "nfd_fast/small_matrix.hpp"

namespace nfd_fast {
namespace {

// Neurons per tile. A tile holds all columns of one array of a layer, neuron-contiguous: a sweep
// then reads a few long runs instead of one stream per column, which the prefetchers cannot follow,
// and asks for the next tile as it goes. Half as large, the ends of the runs take a tenth longer.
constexpr std::int64_t kTile = 512;

// Most chunks of a reduction. A chunk's neurons depend on the width alone, which fixes the shape of
// every sum.
constexpr std::int64_t kMostChunks = 256;

// How much of its square a column of a block must keep to be a new direction, as shares of the
// square of the numbers that what is kept is the rest of. Sums in float64 over p terms know it to
// some p eps = 1e-14 of that: kKnown, generously. A direction is there if it is known to 1e-4 of
// itself: kNew. It is stored if the rounding of the column is still small against it: off by
// eps/sqrt(kClearlyNew) = 32 eps of the dtype, at most. (A length of 3 %: columns of different
// samples keep more, those of one sample whose weights have moved by a small step less.)
constexpr double kKnown = 1e-12;
constexpr double kNew = 1e-8;
constexpr double kClearlyNew = 1e-3;

// A round leaves 1e-4 of what a column shares with those before it, so that 4 are enough for
// tolerances down to 1e-16, and as many again for the columns they lean on.
constexpr int kMostRounds = 32;

enum Kind { kFeatures, kAdjoints };

// What a step works out, for one layer and one block, per team member.
template <class T>
struct Step {
    std::int64_t p, q, rank;  // earlier columns of this side and of the other, new directions
    bool refined;             // whether Z differs from X
    bool* open;               // (B) whether a column of Z may hold a new direction
    std::int64_t* pivot;      // (B) which columns of Z are new directions
    double *b, *c;            // (p, B) U.X and the coefficients of Z, at last of X
    double *s, *z;            // (q, B) other images.Z and other basis.xi
    double *xx, *e;           // (B, B) X.X and the residual Gram
    double* t;                // (rank, B) factor T of Z, at last of X
    double *a, *m;            // (p, B), (B, B) X = U A + Z M
    double* seen;             // (q, rank) t = Q.(W u)
    double* k;                // (q, rank)
    double* gram_solved;      // (q, rank) (Q.Q)^-1 t
    double* new_cross;        // (q, rank) other images.u of the stored u
    double* other_cross;      // (q, rank) Q.v of the new images
    double* work;             // (max(p, q) + B, B)
    // In T, as the sweep applies them.
    T* from_basis;             // (p, rank) -c at the pivots
    T* inverse;                // (rank, rank) T^-1 at the pivots
    T* image_shift;            // (q, rank) k
    T* images;                 // (p, B) beta Gamma c
    T* other;                  // (q, B) beta (k T + D U.X)
    T* noise;                  // (B, B) beta T, by noise column
    T* coupling;               // (q, B) beta times the part of W X along the other side
    T *off_basis, *off_block;  // (p, B), (B, B) minus F and minus the transpose of N - 1
};

template <class T>
struct ConditionalHidden {
    static constexpr bool records_kernels = true;

    std::int64_t capacity, tile_width, tiles, tiles_per_chunk, chunks, slot_size, measure_size;

    // Per side and layer.
    T* basis[2];             // (L, tiles, capacity, tile)
    T* images[2];            // (L, tiles, capacity, tile)
    double* factor[2];       // (L, capacity, capacity) R, R^T R = U.U
    double* gamma[2];        // (L, capacity, capacity)
    double* cross[2];        // (L, capacity, capacity) other images.U, rows of the other side
    double* along_other[2];  // (L, capacity, capacity) W U along the other side: Q times this
    std::int64_t* ranks[2];  // (L)
    // Per layer.
    double* learned;   // (L, capacity, capacity) D, rows adjoints, columns features
    double* features;  // (L, capacity, B) coefficients of phi(H_{l-1}) in the stored basis

    T* noise;             // (B, n) of the layer that comes next
    T* block;             // (B, n) Z, where it differs from X
    T* accumulated;       // (B, n) sum of the coupling over layers
    double* sums;         // (2, chunks, slot) reductions of this and the next layer
    double* measured;     // (2, chunks, measure) Gram of the new columns of this and the last layer
    double* column_sums;  // (B)
    Step<T>* steps;       // (members)
    T* tile_x;            // (members, B, tile)
    T* tile_increment;    // (members, B, tile)
    double* tile_wide;    // (members, 2, B, tile)
    double* combined;     // (members, slot + measure)

    // A barrier takes as long as some hundred neurons, and far longer on a busy machine: a member
    // should have a few thousand numbers to work on between two of them.
    static int most_members(const Problem<T>& p) {
        constexpr std::int64_t least = 2048;
        const std::int64_t members = p.stack.layer_size() / least;
        return static_cast<int>(
            std::clamp<std::int64_t>(members, 1, std::numeric_limits<int>::max()));
    }

    static ConditionalHidden lay_out(const Problem<T>& p, Arena& arena, int team_members) {
        ConditionalHidden h{};
        const LayerStack& s = p.stack;
        const std::int64_t width = s.width, batch = s.batch;
        h.capacity = std::min((p.first_update + p.updates) * batch, width);
        h.tile_width = width >= kTile ? kTile : (width + 15) / 16 * 16;
        h.tiles = (width + h.tile_width - 1) / h.tile_width;
        // At least two tiles: the sums of a chunk are then a small part of its work.
        h.tiles_per_chunk = std::max<std::int64_t>(2, (h.tiles + kMostChunks - 1) / kMostChunks);
        h.chunks = (h.tiles + h.tiles_per_chunk - 1) / h.tiles_per_chunk;
        h.slot_size = (3 * h.capacity + batch) * batch;
        h.measure_size = (h.capacity + batch) * batch;

        const double layers = static_cast<double>(s.depth), rows = static_cast<double>(batch);
        const double columns = static_cast<double>(h.capacity);
        const double padded = static_cast<double>(h.tiles * h.tile_width);
        const double square = layers * columns * columns;
        for (int side : {kFeatures, kAdjoints}) {
            arena.take(h.basis[side], layers * columns * padded);
            arena.take(h.images[side], layers * columns * padded);
            arena.take(h.factor[side], square);
            arena.take(h.gamma[side], square);
            arena.take(h.cross[side], p.decoupled ? 0 : square);
            arena.take(h.along_other[side], p.keep_coupling ? square : 0);
            arena.take(h.ranks[side], layers);
        }
        arena.take(h.learned, square);
        arena.take(h.features, layers * columns * rows);
        const double block = rows * static_cast<double>(width);
        arena.take(h.noise, block);
        arena.take(h.block, block);
        arena.take(h.accumulated, p.keep_coupling ? block : 0);
        const double chunk_count = static_cast<double>(h.chunks);
        arena.take(h.sums, 2 * chunk_count * static_cast<double>(h.slot_size));
        arena.take(h.measured, 2 * chunk_count * static_cast<double>(h.measure_size));
        arena.take(h.column_sums, rows);
        const double members = team_members;
        const double tile = rows * static_cast<double>(h.tile_width);
        arena.take(h.tile_x, members * tile);
        arena.take(h.tile_increment, members * tile);
        arena.take(h.tile_wide, members * 2 * tile);
        arena.take(h.combined, members * static_cast<double>(h.slot_size + h.measure_size));
        arena.take(h.steps, members);
        for (int member = 0; member < team_members; ++member) {
            Step<T> step{};
            arena.take(step.open, rows);
            arena.take(step.pivot, rows);
            for (double** array : {&step.a, &step.b, &step.c, &step.s, &step.z, &step.seen, &step.k,
                                   &step.gram_solved, &step.new_cross, &step.other_cross}) {
                arena.take(*array, columns * rows);
            }
            for (double** array : {&step.xx, &step.e, &step.t, &step.m}) {
                arena.take(*array, rows * rows);
            }
            arena.take(step.work, (columns + rows) * rows);
            for (T** array : {&step.from_basis, &step.image_shift, &step.images, &step.other,
                              &step.coupling, &step.off_basis}) {
                arena.take(*array, columns * rows);
            }
            for (T** array : {&step.inverse, &step.noise, &step.off_block}) {
                arena.take(*array, rows * rows);
            }
            if (h.steps) h.steps[member] = step;
        }
        return h;
    }

    void initialize(const Problem<T>& p, std::int64_t, Monitor&, Team team) {
        if (team.rank == 0) clear(p);
    }

    // Nothing asked, nothing learned.
    void clear(const Problem<T>& p) {
        const std::int64_t count = p.stack.depth * capacity * capacity;
        for (int side : {kFeatures, kAdjoints}) {
            std::fill_n(ranks[side], p.stack.depth, 0);
            if (along_other[side]) std::fill_n(along_other[side], count, 0.0);
        }
        std::fill_n(learned, count, 0.0);
    }

    void transfer(const Problem<T>& p, StateStream& stream) {
        stream.numbers("feature_ranks", ranks[kFeatures], p.stack.depth);
        stream.numbers("adjoint_ranks", ranks[kAdjoints], p.stack.depth);
        for (int side : {kFeatures, kAdjoints}) {
            const bool first = side == kFeatures;
            for (std::int64_t layer = 1; layer <= p.stack.depth; ++layer) {
                const std::int64_t rank = ranks[side][layer - 1],
                                   across = ranks[1 - side][layer - 1];
                if (rank < 0 || rank > capacity || across < 0 || across > capacity) {
                    throw std::invalid_argument("a rank is out of range");
                }
                for (std::int64_t tile = 0; tile < tiles; ++tile) {
                    const std::int64_t count =
                        std::min(tile_width, p.stack.width - tile * tile_width);
                    for (std::int64_t j = 0; j < rank; ++j) {
                        stream.numbers(first ? "features" : "adjoints",
                                       tile_of(basis[side], layer, tile) + j * tile_width, count);
                        stream.numbers(first ? "feature_images" : "adjoint_images",
                                       tile_of(images[side], layer, tile) + j * tile_width, count);
                    }
                }
                const auto matrix = [&](const char* name, double* array, std::int64_t rows,
                                        std::int64_t columns) {
                    if (!array) return;
                    const Small m = square(array, layer);
                    for (std::int64_t i = 0; i < rows; ++i) {
                        stream.numbers(name, &m(i, 0), columns);
                    }
                };
                matrix(first ? "feature_factor" : "adjoint_factor", factor[side], rank, rank);
                matrix(first ? "feature_gamma" : "adjoint_gamma", gamma[side], rank, rank);
                matrix(first ? "feature_cross" : "adjoint_cross", cross[side], across, rank);
                matrix(first ? "feature_coupling" : "adjoint_coupling", along_other[side], across,
                       rank);
                if (!first) matrix("learned", learned, rank, across);
            }
        }
    }

    void forward(const Problem<T>& p, std::int64_t replica, std::int64_t k, T* layers,
                 FirstBadStep& bad, Monitor& monitor, Team team) {
        Pass pass{*this, p, replica, k, kFeatures, layers, {}, {}, bad, monitor, team};
        pass.keep = k < p.updates;
        pass.run();
    }

    void backward(const Problem<T>& p, std::int64_t replica, std::int64_t k, const T* layers,
                  AdjointStore<T> adjoints, Gradient gradient, FirstBadStep& bad, Monitor& monitor,
                  Team team) {
        Pass pass{*this,    p,        replica, k,       kAdjoints, const_cast<T*>(layers),
                  adjoints, gradient, bad,     monitor, team};
        pass.run();
    }

  private:
    Small square(double* array, std::int64_t layer) const {
        return {array + (layer - 1) * capacity * capacity, capacity};
    }
    T* tile_of(T* array, std::int64_t layer, std::int64_t tile) const {
        return array + ((layer - 1) * tiles + tile) * capacity * tile_width;
    }

    // One pass over all layers, forward or backward.
    struct Pass {
        ConditionalHidden& h;
        const Problem<T>& p;
        std::int64_t replica, k;
        Kind side;
        T* features;  // (L+1, B, n)
        AdjointStore<T> adjoints;
        Gradient gradient;
        FirstBadStep& bad;
        Monitor& monitor;
        Team team;
        bool keep = true;  // whether later passes will ask about this block

        const VectorKernels<T>& vector = kernels().of<T>();
        const std::int64_t batch = p.stack.batch, n = p.stack.width;
        Step<T>& step = h.steps[team.rank];
        T* const x = h.tile_x + team.rank * batch * h.tile_width;
        T* const increment = h.tile_increment + team.rank * batch * h.tile_width;
        double* const wide = h.tile_wide + team.rank * 2 * batch * h.tile_width;
        double* const wide_noise = wide + batch * h.tile_width;
        double* const combined = h.combined + team.rank * (h.slot_size + h.measure_size);

        bool forward() const { return side == kFeatures; }
        Kind other() const { return forward() ? kAdjoints : kFeatures; }
        bool reused() const { return !p.decoupled; }
        bool coupled() const { return reused() && p.keep_coupling; }
        std::int64_t layer_at(std::int64_t index) const {
            return forward() ? index + 1 : p.stack.depth - index;
        }
        Small wide_by(double* data, std::int64_t columns) const { return {data, columns}; }

        // Offsets of the reductions in a slot; the sizes are those of the layer's ranks.
        struct Slot {
            double *b, *s, *z, *xx;
        };
        Slot slot(double* data, std::int64_t layer) const {
            const std::int64_t rank = h.ranks[side][layer - 1],
                               across = h.ranks[other()][layer - 1];
            double* s = data + rank * batch;
            double* z = s + across * batch;
            return {data, s, z, z + across * batch};
        }
        std::int64_t slot_used(std::int64_t layer) const {
            return (h.ranks[side][layer - 1] + 2 * h.ranks[other()][layer - 1] + batch) * batch;
        }
        double* sums(std::int64_t index, std::int64_t chunk) const {
            return h.sums + (index % 2 * h.chunks + chunk) * h.slot_size;
        }
        double* measured(std::int64_t index, std::int64_t chunk) const {
            return h.measured + (index % 2 * h.chunks + chunk) * h.measure_size;
        }

        void run() {
            const std::int64_t depth = p.stack.depth;
            if (coupled()) {
                team.for_tiles(batch * n, kTile * 64, [&](std::int64_t first, std::int64_t count) {
                    std::fill_n(h.accumulated + first, count, T(0));
                });
            }
            team.for_tiles(h.chunks, 1, [&](std::int64_t chunk, std::int64_t) {
                std::fill_n(sums(0, chunk), slot_used(layer_at(0)), 0.0);
                for_tiles_of(chunk, [&](std::int64_t tile, std::int64_t first, std::int64_t count) {
                    reduce(0, chunk, tile, first, count);
                });
            });
            team.sync();
            for (std::int64_t index = 0; index < depth; ++index) {
                if (index > 0 && keep && team.rank == 0) append(index - 1);
                solve(index);
                if (team.rank == 0) record(index);
                team.for_tiles(h.chunks, 1, [&](std::int64_t chunk, std::int64_t) {
                    if (team.polls) monitor.poll();
                    if (monitor.stopped()) return;
                    if (keep) std::fill_n(measured(index, chunk), h.measure_size, 0.0);
                    if (index + 1 < depth) {
                        std::fill_n(sums(index + 1, chunk), slot_used(layer_at(index + 1)), 0.0);
                    }
                    for_tiles_of(chunk,
                                 [&](std::int64_t tile, std::int64_t first, std::int64_t count) {
                                     update(index, chunk, tile, first, count);
                                     if (index + 1 < depth)
                                         reduce(index + 1, chunk, tile, first, count);
                                 });
                });
                team.sync();
            }
            if (keep && team.rank == 0) append(depth - 1);
            finish_coupling();
            team.sync();
        }

        template <class F>
        void for_tiles_of(std::int64_t chunk, F f) const {
            const std::int64_t last = std::min((chunk + 1) * h.tiles_per_chunk, h.tiles);
            for (std::int64_t tile = chunk * h.tiles_per_chunk; tile < last; ++tile) {
                const std::int64_t first = tile * h.tile_width;
                f(tile, first, std::min(h.tile_width, n - first));
            }
        }

        // How many numbers after a tile of a basis or its images this member's next one lies; after
        // its last chunk, about where the next layer's first begins.
        std::int64_t next_tile(std::int64_t chunk, std::int64_t tile) const {
            const bool last = tile + 1 == std::min((chunk + 1) * h.tiles_per_chunk, h.tiles);
            const std::int64_t tiles_ahead = last ? 1 + (team.size - 1) * h.tiles_per_chunk : 1;
            return tiles_ahead * h.capacity * h.tile_width;
        }

        // The block that layer `layer` is asked about: phi(H_{l-1}) or G_l, columns h.tile_width
        // apart.
        void load_block(std::int64_t layer, std::int64_t first, std::int64_t count) const {
            for (std::int64_t b = 0; b < batch; ++b) {
                T* column = x + b * h.tile_width;
                if (forward()) {
                    const T* from = features + (layer - 1) * p.stack.layer_size() + b * n + first;
                    vector.activate(p.stack.activation, from, count, column);
                } else {
                    std::copy_n(adjoints.layer(p.stack, layer) + b * n + first, count, column);
                }
            }
        }

        // The block Z in whose columns the new directions are.
        void load_residual(std::int64_t layer, std::int64_t first, std::int64_t count) const {
            if (!step.refined) return load_block(layer, first, count);
            for (std::int64_t b = 0; b < batch; ++b) {
                std::copy_n(h.block + b * n + first, count, x + b * h.tile_width);
            }
        }

        void widen(const T* columns, std::int64_t stride, std::int64_t count, double* to) const {
            for (std::int64_t b = 0; b < batch; ++b) {
                vector.widen(columns + b * stride, count, to + b * h.tile_width);
            }
        }

        // xi of the layer for one tile: the normalised sum of its fine layers' noise.
        void draw(std::int64_t layer, std::int64_t first, std::int64_t count) const {
            const Stream stream = forward() ? Stream::forward_noise : Stream::backward_noise;
            const T scale = static_cast<T>(1 / std::sqrt(static_cast<double>(p.fine)));
            for (std::int64_t b = 0; b < batch; ++b) {
                T* to = h.noise + b * n + first;
                const auto column = static_cast<std::uint32_t>((p.first_update + k) * batch + b);
                for (std::int64_t s = 1; s <= p.fine && !monitor.stopped(); ++s) {
                    const NoiseAddress address =
                        noise_address(p.seeds[replica], stream, (layer - 1) * p.fine + s);
                    vector.normal_neurons(address, column, first, count, s == 1 ? to : increment);
                    if (s > 1) vector.axpy(T(1), increment, count, to);
                    if (team.polls && s % 64 == 0) monitor.poll();
                }
                if (p.fine > 1) vector.scale(scale, to, count, to);
            }
        }

        // Inner products of the next layer's block with everything it will be compared with.
        void reduce(std::int64_t index, std::int64_t chunk, std::int64_t tile, std::int64_t first,
                    std::int64_t count) const {
            const std::int64_t layer = layer_at(index), stride = h.tile_width;
            const std::int64_t rank = h.ranks[side][layer - 1],
                               across = h.ranks[other()][layer - 1];
            const Slot to = slot(sums(index, chunk), layer);
            const std::int64_t ahead = next_tile(chunk, tile);
            load_block(layer, first, count);
            widen(x, stride, count, wide);
            vector.products(h.tile_of(h.basis[side], layer, tile), stride, rank, wide, stride,
                            batch, count, ahead, to.b);
            vector.products(x, stride, batch, wide, stride, batch, count, 0, to.xx);
            draw(layer, first, count);
            if (!reused() || across == 0) return;
            vector.products(h.tile_of(h.images[other()], layer, tile), stride, across, wide, stride,
                            batch, count, ahead, to.s);
            widen(h.noise + first, n, count, wide_noise);
            vector.products(h.tile_of(h.basis[other()], layer, tile), stride, across, wide_noise,
                            stride, batch, count, ahead, to.z);
        }

        // Adds the chunks' sums in increasing order and divides by n.
        void gather(double* (Pass::*part)(std::int64_t, std::int64_t) const, std::int64_t index,
                    std::int64_t count) const {
            std::fill_n(combined, count, 0.0);
            for (std::int64_t chunk = 0; chunk < h.chunks; ++chunk) {
                const double* from = (this->*part)(index, chunk);
                for (std::int64_t i = 0; i < count; ++i) combined[i] += from[i];
            }
            for (std::int64_t i = 0; i < count; ++i) combined[i] /= static_cast<double>(n);
        }

        // Everything the sweep of a layer needs, from the sums over all neurons.
        void solve(std::int64_t index) {
            const std::int64_t layer = layer_at(index);
            step.p = h.ranks[side][layer - 1];
            step.q = h.ranks[other()][layer - 1];
            gather(&Pass::sums, index, slot_used(layer));
            const Slot from = slot(combined, layer);
            std::copy_n(from.b, step.p * batch, step.b);
            std::copy_n(from.s, step.q * batch, step.s);
            std::copy_n(from.z, step.q * batch, step.z);
            std::copy_n(from.xx, batch * batch, step.xx);

            step.refined = false;
            bool settled = project(layer, from);
            for (int round = 0; !settled && round < kMostRounds; ++round) settled = refine(index);
            if (!settled)
                bad.report(index + 1);  // never seen; but no answer rather than a wrong one
            factorize(layer);
            if (step.refined) compose();
            round_coefficients(layer);
        }

        // Given the inner products of Z, the coefficients c along the basis and the new directions
        // T among the columns; returns whether every column is settled.
        bool project(std::int64_t layer, Slot from) {
            const std::int64_t p_ = step.p;
            const Small r = h.square(h.factor[side], layer);
            const Small c = wide_by(step.c, batch), e = wide_by(step.e, batch);
            std::copy_n(from.b, p_ * batch, step.c);
            solve_transposed(p_, batch, r, c);  // R^-T U.Z
            std::copy_n(from.xx, batch * batch, step.e);
            multiply_small_transposed(batch, batch, p_, -1.0, c, c, true, e);
            solve_upper(p_, batch, r, c);

            const Small t = wide_by(step.t, batch);
            const std::int64_t most = std::min(batch, (keep ? h.capacity : n) - p_);
            const double share = p.tolerance * p.tolerance;
            // What is not stored need not be well conditioned.
            const double clearly = keep ? kClearlyNew : kNew;
            // Squared: far from where the inverse of a direction's length overflows in T, and from
            // where a square loses digits in float64.
            const double shortest = 16.0 * static_cast<double>(std::numeric_limits<T>::min());
            const double tiny = std::max(shortest * shortest, 1e-290);
            bool settled = true;
            step.rank = 0;
            for (std::int64_t j = 0; j < batch; ++j) {
                step.open[j] = false;
                const double whole = from.xx[j * batch + j];
                const double least = std::max(share * smallest_share(j), tiny);
                // Written so that NaN counts as dependent: it is found and reported elsewhere.
                if (!(whole > least) || step.rank == most) continue;
                step.open[j] = true;
                // What is left of the square, and the square of the numbers it is what is left of:
                // lengths of the column and of its parts along the earlier ones.
                double left = e(j, j), size = std::sqrt(whole);
                for (std::int64_t i = step.rank; i-- > 0;) {
                    left -= t(i, j) * t(i, j);
                    double part = t(i, j);
                    for (std::int64_t l = i + 1; l < step.rank; ++l) {
                        part -= t(i, step.pivot[l]) * step.work[l];
                    }
                    step.work[i] = part / t(i, step.pivot[i]);
                    const std::int64_t at = step.pivot[i];
                    size += std::abs(step.work[i]) * std::sqrt(from.xx[at * batch + at]);
                }
                const double known = size * size;
                if (left + kKnown * known <= least) {
                    step.open[j] = false;
                    continue;
                }
                if (!(left > std::max(kNew * known, least))) {
                    settled = false;
                    continue;
                }
                settled = settled && left > clearly * known;
                append_row(step.rank, j, batch, std::sqrt(left), e, t);
                step.pivot[step.rank++] = j;
            }
            return settled;
        }

        // The square of a column of Z below which, times a share, nothing depends on it: it may
        // stand for more of another column of X than of its own, by the square of its factor in M.
        double smallest_share(std::int64_t j) const {
            double smallest = step.xx[j * batch + j];
            for (std::int64_t k = 0; k < batch && step.refined; ++k) {
                const double factor = step.m[j * batch + k];
                const double square = step.xx[k * batch + k];
                if (square < smallest * factor * factor) smallest = square / (factor * factor);
            }
            return smallest;
        }

        // Takes off every column of Z that may be new what lies along the basis and along the new
        // directions among the columns before it, one column after the other, so that what is taken
        // off is never longer than the column; and measures again.
        bool refine(std::int64_t index) {
            const std::int64_t layer = layer_at(index), p_ = step.p;
            const Small t = wide_by(step.t, batch), m = wide_by(step.m, batch);
            if (!step.refined) {
                std::fill_n(step.a, p_ * batch, 0.0);
                set_identity(batch, m);
            }
            // Z = Z' N + U F, with the rounded coefficients: X = U (A + F M) + Z' (N M).
            const Small f = wide_by(step.c, batch), unit = wide_by(step.work, batch);
            set_identity(batch, unit);
            std::fill_n(step.off_block, batch * batch, T(0));
            for (std::int64_t j = 0; j < batch; ++j) {
                for (std::int64_t i = 0; i < p_; ++i) {
                    const T rounded = step.open[j] ? static_cast<T>(f(i, j)) : T(0);
                    step.off_basis[i * batch + j] = -rounded;
                    f(i, j) = static_cast<double>(rounded);
                }
                if (!step.open[j]) continue;
                for (std::int64_t i = 0; i < step.rank && step.pivot[i] < j; ++i) {
                    const T rounded = static_cast<T>(t(i, j) / t(i, step.pivot[i]));
                    step.off_block[j * batch + step.pivot[i]] = -rounded;
                    unit(step.pivot[i], j) = static_cast<double>(rounded);
                }
            }
            multiply_small(p_, batch, batch, 1.0, f, m, true, wide_by(step.a, batch));
            const Small next = wide_by(step.e, batch);  // which has served
            multiply_small(batch, batch, batch, 1.0, unit, m, false, next);
            std::copy_n(step.e, batch * batch, step.m);
            team.for_tiles(h.chunks, 1, [&](std::int64_t chunk, std::int64_t) {
                std::fill_n(sums(index + 1, chunk), slot_used(layer), 0.0);
                for_tiles_of(chunk, [&](std::int64_t tile, std::int64_t first, std::int64_t count) {
                    subtract(layer, tile, first, count, slot(sums(index + 1, chunk), layer));
                });
            });
            step.refined = true;
            team.sync();
            gather(&Pass::sums, index + 1, slot_used(layer));
            team.sync();
            const Slot from = slot(combined, layer);
            std::copy_n(from.s, step.q * batch, step.s);
            return project(layer, from);
        }

        // The sweep of refine().
        void subtract(std::int64_t layer, std::int64_t tile, std::int64_t first, std::int64_t count,
                      Slot to) const {
            const std::int64_t stride = h.tile_width;
            const T* basis = h.tile_of(h.basis[side], layer, tile);
            load_residual(layer, first, count);
            T* block = h.block + first;
            vector.combine(basis, stride, step.p, step.off_basis, batch, count, 0, x, stride, block,
                           n);
            for (std::int64_t j = 1; j < batch; ++j) {
                if (!step.open[j]) continue;
                vector.combine(block, n, j, step.off_block + j * batch, 1, count, 0, block + j * n,
                               n, block + j * n, n);
            }
            widen(block, n, count, wide);
            vector.products(basis, stride, step.p, wide, stride, batch, count, 0, to.b);
            vector.products(block, n, batch, wide, stride, batch, count, 0, to.xx);
            if (!reused()) return;
            vector.products(h.tile_of(h.images[other()], layer, tile), stride, step.q, wide, stride,
                            batch, count, 0, to.s);
        }

        // Coefficients of X from those of Z: c <- A + c M, T <- T M.
        void compose() {
            const std::int64_t p_ = step.p, rank = step.rank;
            const Small m = wide_by(step.m, batch), work = wide_by(step.work, batch);
            multiply_small(rank, batch, batch, 1.0, wide_by(step.t, batch), m, false, work);
            std::copy_n(step.work, rank * batch, step.t);
            multiply_small(p_, batch, batch, 1.0, wide_by(step.c, batch), m, false, work);
            for (std::int64_t i = 0; i < p_ * batch; ++i) step.c[i] = step.a[i] + step.work[i];
        }

        // What is known of the images of the new directions.
        void factorize(std::int64_t layer) {
            const std::int64_t rank = step.rank;
            // T^-1 at the pivots, in step.e, which has served.
            const Small inverse = wide_by(step.e, batch);
            const Small t = wide_by(step.t, batch);
            for (std::int64_t j = 0; j < rank; ++j) {
                for (std::int64_t i = 0; i < rank; ++i) inverse(i, j) = i == j ? 1.0 : 0.0;
            }
            for (std::int64_t i = rank - 1; i >= 0; --i) {
                for (std::int64_t m = i + 1; m < rank; ++m) {
                    for (std::int64_t j = 0; j < rank; ++j) {
                        inverse(i, j) -= t(i, step.pivot[m]) * inverse(m, j);
                    }
                }
                for (std::int64_t j = 0; j < rank; ++j) inverse(i, j) /= t(i, step.pivot[i]);
            }
            for (std::int64_t i = 0; i < rank; ++i) {
                for (std::int64_t j = 0; j < rank; ++j) {
                    step.inverse[i * rank + j] = static_cast<T>(inverse(i, j));
                }
                for (std::int64_t j = 0; j < step.p; ++j) {
                    step.from_basis[j * rank + i] =
                        static_cast<T>(-step.c[j * batch + step.pivot[i]]);
                }
            }
            if (!reused() || step.q == 0) return;

            // Other images.u = (s - cross c) T^-1, exactly and for the rounded u.
            const Small cross = h.square(h.cross[side], layer);
            const Small seen = wide_by(step.seen, rank);
            for (std::int64_t i = 0; i < step.q; ++i) {
                double* row = step.k + i * batch;  // scratch: (rank) residual products of one row
                double* rounded = step.gram_solved + i * batch;
                for (std::int64_t j = 0; j < rank; ++j) {
                    row[j] = rounded[j] = step.s[i * batch + step.pivot[j]];
                    for (std::int64_t m = 0; m < step.p; ++m) {
                        row[j] -= cross(i, m) * step.c[m * batch + step.pivot[j]];
                        rounded[j] +=
                            cross(i, m) * static_cast<double>(step.from_basis[m * rank + j]);
                    }
                }
                for (std::int64_t j = 0; j < rank; ++j) {
                    double exact = 0, stored = 0;
                    for (std::int64_t m = 0; m < rank; ++m) {
                        exact += row[m] * inverse(m, j);
                        stored += rounded[m] * static_cast<double>(step.inverse[m * rank + j]);
                    }
                    step.other_cross[i * rank + j] = exact;  // until it is turned into t below
                    step.new_cross[i * rank + j] = stored;
                }
            }
            // t = Q.(W u) = Gamma^T (other images.u), for W^T Q = S Gamma.
            multiply_small_transposed(step.q, rank, step.q, 1.0, h.square(h.gamma[other()], layer),
                                      wide_by(step.other_cross, rank), false, seen);
            // k = (Q.Q)^-1 (t - Q.xi)
            const Small r = h.square(h.factor[other()], layer);
            const Small shift = wide_by(step.k, rank);
            for (std::int64_t i = 0; i < step.q; ++i) {
                for (std::int64_t j = 0; j < rank; ++j) {
                    shift(i, j) = seen(i, j) - step.z[i * batch + step.pivot[j]];
                }
            }
            solve_transposed(step.q, rank, r, shift);
            solve_upper(step.q, rank, r, shift);
            for (std::int64_t i = 0; i < step.q * rank; ++i) {
                step.image_shift[i] = static_cast<T>(step.k[i]);
            }
            // Q.v = Q.xi + (Q.Q) k for the image as it is stored.
            const Small rounded = wide_by(step.gram_solved, rank);
            for (std::int64_t i = 0; i < step.q; ++i) {
                for (std::int64_t j = 0; j < rank; ++j) {
                    double sum = 0;
                    for (std::int64_t m = i; m < step.q; ++m) {
                        sum += r(i, m) * static_cast<double>(step.image_shift[m * rank + j]);
                    }
                    rounded(i, j) = sum;
                }
            }
            multiply_small_transposed(step.q, rank, step.q, 1.0, r, rounded, false,
                                      wide_by(step.other_cross, rank));
            for (std::int64_t i = 0; i < step.q; ++i) {
                for (std::int64_t j = 0; j < rank; ++j) {
                    step.other_cross[i * rank + j] += step.z[i * batch + step.pivot[j]];
                }
            }
            if (!coupled()) return;
            std::copy_n(step.seen, step.q * rank, step.gram_solved);
            solve_transposed(step.q, rank, r, wide_by(step.gram_solved, rank));
            solve_upper(step.q, rank, r, wide_by(step.gram_solved, rank));
        }

        // W X = V (Gamma c) + xi T + Q (k T + D U.X), with beta, in T.
        void round_coefficients(std::int64_t layer) {
            // A forward pass adds its increment to the features itself; a backward pass multiplies
            // by phi' first and takes beta along there.
            const double beta = forward() ? p.stack.branch_factor : 1.0;
            const std::int64_t rank = step.rank, p_ = step.p, q_ = step.q;
            const Small work = wide_by(step.work, batch), t = wide_by(step.t, batch);
            const Small c = wide_by(step.c, batch), b = wide_by(step.b, batch);
            const Small gamma = h.square(h.gamma[side], layer);
            for (std::int64_t i = 0; i < p_; ++i) {
                for (std::int64_t j = 0; j < batch; ++j) {
                    double sum = 0;
                    for (std::int64_t m = i; m < p_; ++m) sum += gamma(i, m) * c(m, j);
                    step.images[i * batch + j] = static_cast<T>(beta * sum);
                }
            }
            std::fill_n(step.noise, batch * batch, T(0));
            for (std::int64_t i = 0; i < rank; ++i) {
                for (std::int64_t j = 0; j < batch; ++j) {
                    step.noise[step.pivot[i] * batch + j] = static_cast<T>(beta * t(i, j));
                }
            }
            uses_other = q_ > 0 && (p.train_hidden || (reused() && rank > 0));
            if (q_ == 0) return;
            if (reused()) {
                multiply_small(q_, batch, rank, beta, wide_by(step.k, rank), t, false, work);
            } else {
                std::fill_n(step.work, q_ * batch, 0.0);
            }
            const Small learned = h.square(h.learned, layer);
            if (forward()) {
                multiply_small(q_, batch, p_, beta, learned, b, true, work);
            } else {
                multiply_small_transposed(q_, batch, p_, beta, learned, b, true, work);
            }
            for (std::int64_t i = 0; i < q_ * batch; ++i) {
                step.other[i] = static_cast<T>(step.work[i]);
            }
            if (!coupled()) return;
            multiply_small(q_, batch, p_, p.stack.branch_factor,
                           h.square(h.along_other[side], layer), c, false, work);
            multiply_small(q_, batch, rank, p.stack.branch_factor, wide_by(step.gram_solved, rank),
                           t, true, work);
            for (std::int64_t i = 0; i < q_ * batch; ++i) {
                step.coupling[i] = static_cast<T>(step.work[i]);
            }
        }

        // Stores the new columns and makes the next features or adjoints.
        void update(std::int64_t index, std::int64_t chunk, std::int64_t tile, std::int64_t first,
                    std::int64_t count) const {
            const std::int64_t layer = layer_at(index), stride = h.tile_width;
            const std::int64_t rank = step.rank, size = p.stack.layer_size();
            const std::int64_t ahead = next_tile(chunk, tile);
            T* basis = h.tile_of(h.basis[side], layer, tile);
            T* images = h.tile_of(h.images[side], layer, tile);
            const T* other_basis = h.tile_of(h.basis[other()], layer, tile);
            const T* xi = h.noise + first;
            if (keep && rank > 0) {
                load_residual(layer, first, count);
                T* fresh = basis + step.p * stride;
                T* image = images + step.p * stride;
                for (std::int64_t i = 0; i < rank; ++i) {
                    std::copy_n(x + step.pivot[i] * stride, count, increment + i * stride);
                    std::copy_n(xi + step.pivot[i] * n, count, image + i * stride);
                }
                vector.combine(basis, stride, step.p, step.from_basis, rank, count, ahead,
                               increment, stride, increment, stride);
                vector.combine(increment, stride, rank, step.inverse, rank, count, 0, nullptr, 0,
                               fresh, stride);
                for (std::int64_t i = 0; i < rank; ++i) {
                    vector.widen(fresh + i * stride, count, wide + i * stride);
                }
                vector.products(basis, stride, step.p + rank, wide, stride, rank, count, 0,
                                measured(index, chunk));
                if (reused()) {
                    vector.combine(other_basis, stride, step.q, step.image_shift, rank, count,
                                   ahead, image, stride, image, stride);
                }
            }
            T* out = increment;
            std::int64_t out_stride = stride;
            if (forward()) {
                out = features + layer * size + first;
                out_stride = n;
            }
            const T* skipped = features + (layer - 1) * size + first;
            vector.combine(images, stride, step.p, step.images, batch, count, ahead,
                           forward() && p.stack.skip ? skipped : nullptr, n, out, out_stride);
            vector.combine(xi, n, batch, step.noise, batch, count, 0, out, out_stride, out,
                           out_stride);
            if (uses_other) {
                vector.combine(other_basis, stride, step.q, step.other, batch, count, ahead, out,
                               out_stride, out, out_stride);
            }
            if (coupled()) {
                vector.combine(other_basis, stride, step.q, step.coupling, batch, count, 0,
                               h.accumulated + first, n, h.accumulated + first, n);
            }
            if (!forward()) {
                const T* above = adjoints.layer(p.stack, layer) + first;
                T* below = adjoints.layer(p.stack, layer - 1) + first;
                const T* before = features + (layer - 1) * size + first;
                for (std::int64_t b = 0; b < batch; ++b) {
                    vector.adjoint_step(p.stack.activation, p.stack.skip ? above + b * n : nullptr,
                                        before + b * n, increment + b * stride,
                                        static_cast<T>(p.stack.branch_factor), count,
                                        below + b * n);
                }
                out = below;
                out_stride = n;
            }
            for (std::int64_t b = 0; b < batch; ++b) {
                if (!vector.all_finite(out + b * out_stride, count)) {
                    bad.report(index + 1);
                }
            }
        }

        // Makes the new columns of a layer part of what is known; rank 0, when nobody reads it.
        void append(std::int64_t index) {
            const std::int64_t layer = layer_at(index), p_ = step.p, q_ = step.q, rank = step.rank;
            gather(&Pass::measured, index, (p_ + rank) * rank);
            const Small lean = wide_by(combined, rank);             // (p, rank) U.u
            const Small own = wide_by(combined + p_ * rank, rank);  // (rank, rank) u.u
            const Small r = h.square(h.factor[side], layer);
            const Small gamma = h.square(h.gamma[side], layer);
            // R of the enlarged basis: R12 = R^-T U.u, R22^T R22 = u.u - R12^T R12.
            solve_transposed(p_, rank, r, lean);
            multiply_small_transposed(rank, rank, p_, -1.0, lean, lean, true, own);
            cholesky(rank, own, own);
            for (std::int64_t j = 0; j < rank; ++j) {
                for (std::int64_t i = 0; i < p_; ++i) r(i, p_ + j) = lean(i, j);
                for (std::int64_t i = 0; i < rank; ++i) {
                    r(p_ + i, p_ + j) = own(i, j);
                    gamma(p_ + i, p_ + j) = own(i, j);
                    for (std::int64_t m = 0; m < p_; ++m) r(p_ + i, m) = gamma(p_ + i, m) = 0;
                }
            }
            // u = U g + (new directions) R22 with g = R^-1 R12.
            solve_upper(p_, rank, r, lean);
            const Small gamma_new{gamma.data + p_, gamma.stride};
            multiply_small(p_, rank, p_, 1.0, gamma, lean, false, gamma_new);
            if (coupled()) {
                const Small along = h.square(h.along_other[side], layer);
                const Small along_new{along.data + p_, along.stride};
                const std::int64_t rows = h.capacity;
                for (std::int64_t i = 0; i < rows; ++i) {
                    for (std::int64_t j = 0; j < rank; ++j) along_new(i, j) = 0;
                }
                multiply_small(q_, rank, p_, 1.0, along, lean, false, along_new);
                multiply_small(q_, rank, rank, 1.0, wide_by(step.gram_solved, rank), own, true,
                               along_new);
            }
            if (reused()) {
                const Small cross = h.square(h.cross[side], layer);
                const Small back = h.square(h.cross[other()], layer);
                for (std::int64_t i = 0; i < q_; ++i) {
                    for (std::int64_t j = 0; j < rank; ++j) {
                        cross(i, p_ + j) = step.new_cross[i * rank + j];
                        back(p_ + j, i) = step.other_cross[i * rank + j];
                    }
                }
            }
            h.ranks[side][layer - 1] = p_ + rank;

            // Coefficients of X in the stored basis: [c - g R22^-1 T; R22^-1 T].
            double* coefficients =
                forward() ? h.features + (layer - 1) * h.capacity * batch : step.work;
            const Small alpha = wide_by(coefficients, batch);
            const Small fresh{coefficients + p_ * batch, batch};
            for (std::int64_t i = 0; i < rank; ++i) {
                for (std::int64_t j = 0; j < batch; ++j) fresh(i, j) = step.t[i * batch + j];
            }
            solve_upper(rank, batch, own, fresh);
            std::copy_n(step.c, p_ * batch, coefficients);
            multiply_small(p_, batch, rank, -1.0, lean, fresh, true, alpha);
            if (!forward()) learn(layer, alpha, p_ + rank);
        }

        // D -= step sum_b w_b gamma_b alpha_b^T, with the coefficients of the batch's adjoints and
        // features.
        void learn(std::int64_t layer, Small adjoint_coefficients,
                   std::int64_t adjoint_rank) const {
            if (gradient.step == 0) return;
            const Small learned = h.square(h.learned, layer);
            const Small feature_coefficients{h.features + (layer - 1) * h.capacity * batch, batch};
            const std::int64_t feature_rank = h.ranks[kFeatures][layer - 1];
            for (std::int64_t i = 0; i < adjoint_rank; ++i) {
                for (std::int64_t b = 0; b < batch; ++b) {
                    const double weight =
                        gradient.step * gradient.sample_weights[b] * adjoint_coefficients(i, b);
                    for (std::int64_t j = 0; j < feature_rank; ++j) {
                        learned(i, j) -= weight * feature_coefficients(j, b);
                    }
                }
            }
        }

        // What the reductions of a layer already say; rank 0.
        void record(std::int64_t index) const {
            const std::int64_t layer = layer_at(index), depth = p.stack.depth;
            const std::int64_t row = replica * (p.updates + (forward() ? 1 : 0)) + k;
            const Records& to = p.records;
            double* kernels = forward() ? to.activation_kernels : to.adjoint_kernels;
            if (kernels) {
                const std::int64_t at =
                    forward() ? row * depth + layer - 1 : row * (depth + 1) + layer;
                std::copy_n(step.xx, batch * batch, kernels + at * batch * batch);
            }
            double* per_layer = forward() ? to.coupling_per_layer : to.backward_coupling_per_layer;
            if (per_layer && reused()) per_layer[row * depth + layer - 1] = coupling(layer);
            double* kept = forward() ? to.feature_ranks : to.adjoint_ranks;
            if (kept && keep) {
                kept[(replica * p.updates + k) * depth + layer - 1] =
                    static_cast<double>(step.p + step.rank);
            }
        }

        // Mean over neurons and batch of the square of Q times the coupling's coefficients.
        double coupling(std::int64_t layer) const {
            const Small r = h.square(h.factor[other()], layer);
            double sum = 0;
            for (std::int64_t b = 0; b < batch && step.q > 0; ++b) {
                for (std::int64_t i = 0; i < step.q; ++i) {
                    double entry = 0;
                    for (std::int64_t m = i; m < step.q; ++m) {
                        entry += r(i, m) * static_cast<double>(step.coupling[m * batch + b]);
                    }
                    sum += entry * entry;
                }
            }
            return sum / static_cast<double>(batch);
        }

        void finish_coupling() const {
            double* to = forward() ? p.records.coupling_accumulated
                                   : p.records.backward_coupling_accumulated;
            if (!to || !coupled()) return;
            team.for_tiles(batch, 1, [&](std::int64_t b, std::int64_t) {
                const T* column = h.accumulated + b * n;
                h.column_sums[b] = vector.dot(column, column, n);
            });
            team.sync();
            if (team.rank != 0) return;
            double sum = 0;
            for (std::int64_t b = 0; b < batch; ++b) sum += h.column_sums[b];
            to[replica * (p.updates + (forward() ? 1 : 0)) + k] =
                sum / static_cast<double>(batch * n);
        }

        bool uses_other = false;
    };
};

}  // namespace

template <class T>
double conditional_bytes(const Problem<T>& problem) {
    return engine_bytes<T, ConditionalHidden>(problem);
}

template <class T>
void train_conditional(const Problem<T>& problem, Monitor& monitor, StateStream* restore,
                       std::unique_ptr<State>* keep) {
    train_replicas<T, ConditionalHidden>(problem, monitor, restore, keep);
}

template double conditional_bytes<float>(const Problem<float>&);
template double conditional_bytes<double>(const Problem<double>&);
template void train_conditional<float>(const Problem<float>&, Monitor&, StateStream*,
                                       std::unique_ptr<State>*);
template void train_conditional<double>(const Problem<double>&, Monitor&, StateStream*,
                                        std::unique_ptr<State>*);

}  // namespace nfd_fast
