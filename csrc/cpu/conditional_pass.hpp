// A pass of the conditional engine over all layers: sweeps over the neurons.
//
// Sweeps and barriers. Per layer and pass each neuron is visited once: the update of a layer and
// the reductions for the next touch the same neuron, so they share a visit, with one barrier a
// layer. The small algebra in between is repeated by every thread, which costs less than a second
// barrier. A round for a nearly dependent block adds one sweep and two barriers: one before its
// sums are read, one before their place is used again.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cpu/conditional_scratch.hpp"
#include "cpu/replica.hpp"
#include "cpu/serial_crew.hpp"
#include "nfd_fast/layer_algebra.hpp"

namespace nfd_fast {

// One pass over all layers, forward or backward. Layers are counted by `index` in the order in
// which it comes to them.
template <class T>
struct ConditionalPass {
    ConditionalScratch<T>& h;
    const Problem<T>& p;
    std::int64_t replica, k;
    Side side;
    bool keep;      // whether later passes will ask about this block
    T* features;    // (L+1, B, n)
    bool in_place;  // (B, n) instead: each layer takes the place of the one before
    AdjointStore<T> adjoints;
    Gradient gradient;
    FirstBadStep& bad;
    Monitor& monitor;
    Team team;

    const VectorKernels<T>& vector = kernels().of<T>();
    const std::int64_t batch = p.stack.batch, n = p.stack.width, stride = h.tile_width;
    Step<T>& step = h.steps[team.rank];
    const LayerRules rules = rules_of(p, side, keep);
    const bool long_algebra = takes_long(h.capacity, batch);
    LayerAlgebra<T, SerialCrew> algebra{
        h, rules, SerialCrew{long_algebra ? &monitor : nullptr, team.polls}, step};
    T* const x = h.tile_x + team.rank * batch * stride;
    T* const increment = h.tile_increment + team.rank * batch * stride;
    T* const tile_noise = h.tile_noise + team.rank * batch * stride;
    double* const wide = h.tile_wide + team.rank * 2 * batch * stride;
    double* const wide_noise = wide + batch * stride;
    double* const combined = h.combined + team.rank * (h.slot_size + h.measure_size);
    int turn = 0;

    // Whether the algebra of a layer may take so long, tens of milliseconds, that someone who wants
    // to stop would wait.
    static bool takes_long(std::int64_t capacity, std::int64_t batch) {
        const double columns = static_cast<double>(capacity) + static_cast<double>(batch);
        return columns * columns * static_cast<double>(batch) >= 0x1p24;
    }

    static LayerRules rules_of(const Problem<T>& p, Side side, bool keep) {
        const bool coupled = !p.decoupled && p.keep_coupling;
        return {p.stack.width, p.stack.batch, p.stack.branch_factor, p.tolerance,
                !p.decoupled,  coupled,       p.train_hidden,        1,
                side,          keep};
    }
    bool forward() const { return side == kFeatures; }
    Side other() const { return opposite(side); }
    bool reused() const { return rules.reused; }
    bool coupled() const { return rules.coupled; }
    std::int64_t layer_at(std::int64_t index) const {
        return forward() ? index + 1 : p.stack.depth - index;
    }

    T* features_of(std::int64_t layer) const {
        return features + (in_place ? 0 : layer * p.stack.layer_size());
    }

    // The reductions of a layer; how many there are depends on its ranks.
    Products products(double* data, std::int64_t layer) const {
        return {data, h.ranks[side][layer - 1], h.ranks[other()][layer - 1], batch};
    }
    std::int64_t product_count(std::int64_t layer) const {
        return Products::count(h.ranks[side][layer - 1], h.ranks[other()][layer - 1], batch);
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
            constexpr std::int64_t run = std::int64_t{1} << 15;
            team.for_tiles(batch * n, run, [&](std::int64_t first, std::int64_t count) {
                std::fill_n(h.accumulated + first, count, T(0));
            });
        }
        team.for_tiles(h.chunks, 1, [&](std::int64_t chunk, std::int64_t) {
            std::fill_n(sums(0, chunk), product_count(layer_at(0)), 0.0);
            for_tiles_of(chunk, [&](const Tile& tile) { reduce(0, tile); });
        });
        if (sync_and_halt()) return;
        for (std::int64_t index = 0; index < depth; ++index) {
            if (index > 0 && keep && team.rank == 0 && !stopped()) append(index - 1);
            solve(index);
            if (team.rank == 0) record(index);
            team.for_tiles(h.chunks, 1, [&](std::int64_t chunk, std::int64_t) {
                if (keep) std::fill_n(measured(index, chunk), h.measure_size, 0.0);
                if (index + 1 < depth) {
                    std::fill_n(sums(index + 1, chunk), product_count(layer_at(index + 1)), 0.0);
                }
                for_tiles_of(chunk, [&](const Tile& tile) {
                    update(index, tile);
                    if (index + 1 < depth) reduce(index + 1, tile);
                });
            });
            if (sync_and_halt()) return;
        }
        if (keep && team.rank == 0 && !stopped()) append(depth - 1);
        finish_coupling();
        team.sync();
    }

    // Waits for all; whether they all give up now, since someone wants to stop.
    bool sync_and_halt() { return h.halt->reach(team, turn++, monitor.stopped()); }

    bool stopped() const {
        if (team.polls) monitor.poll();
        return monitor.stopped();
    }

    // The same within a tile, where one operation on a large block takes long enough to ask.
    bool stopped_in_tile() const {
        constexpr std::int64_t large = 64;
        return batch > large && stopped();
    }

    struct Tile {
        std::int64_t chunk, index;
        std::int64_t first, count;  // its neurons
        // How many tiles after this one the next of this member lies: after its last of a layer,
        // its first of the layer to which the pass comes then.
        std::int64_t next;
    };
    std::int64_t ahead(const Tile& tile) const { return tile.next * h.capacity * stride; }

    template <class F>
    void for_tiles_of(std::int64_t chunk, F f) const {
        const std::int64_t end = std::min((chunk + 1) * h.tiles_per_chunk, h.tiles);
        const std::int64_t next_layer = forward() ? h.tiles : -h.tiles;
        const Team::Share own = team.share_of(h.chunks);
        for (std::int64_t tile = chunk * h.tiles_per_chunk; tile < end; ++tile) {
            if (stopped()) return;
            const std::int64_t first = tile * stride;
            const bool last = tile + 1 == end && chunk + 1 == own.end;
            const std::int64_t next = last ? next_layer + own.first * h.tiles_per_chunk : tile + 1;
            f(Tile{chunk, tile, first, std::min(stride, n - first), next - tile});
        }
    }

    // Columns of neurons, `apart` from one to the next, and how far the next tile's are.
    struct Columns {
        T* data;
        std::int64_t apart, ahead;
    };

    // The block that layer `layer` is asked about: phi(H_{l-1}) or G_l.
    Columns block_of(std::int64_t layer, const Tile& tile) const {
        if (!forward()) return {adjoints.layer(p.stack, layer) + tile.first, n, 0};
        for (std::int64_t b = 0; b < batch; ++b) {
            vector.activate(p.stack.activation, features_of(layer - 1) + b * n + tile.first,
                            tile.count, x + b * stride);
        }
        return {x, stride, 0};
    }

    // The block Z in whose columns the new directions are.
    Columns residual_of(std::int64_t layer, const Tile& tile) const {
        if (step.refined) return {h.block + tile.first, n, 0};
        return block_of(layer, tile);
    }

    void widen(const T* columns, std::int64_t apart, std::int64_t count, double* to) const {
        for (std::int64_t b = 0; b < batch; ++b) {
            vector.widen(columns + b * apart, count, to + b * stride);
        }
    }

    // Where xi of a tile lies. The algebra asks for products of it with the other side's basis, if
    // there is one that counts: then it was drawn before, into the slots that its images will have
    // where there is room, so that their memory is fetched once. Else it is drawn where it is used.
    bool noise_is_asked(std::int64_t across) const { return reused() && across > 0; }
    Columns noise_of(std::int64_t layer, const Tile& tile) const {
        if (!noise_is_asked(h.ranks[other()][layer - 1])) return {tile_noise, stride, 0};
        const std::int64_t rank = h.ranks[side][layer - 1];
        if (rank + batch > h.capacity) return {h.noise + tile.first, n, tile.next * stride};
        return {h.tile_of(h.images[side], layer, tile.index) + rank * stride, stride, ahead(tile)};
    }

    // xi of the layer for one tile: the normalised sum of its fine layers' noise.
    void draw(std::int64_t layer, const Tile& tile, Columns noise) const {
        const Stream stream = forward() ? Stream::forward_noise : Stream::backward_noise;
        const T scale = static_cast<T>(1 / std::sqrt(static_cast<double>(p.fine)));
        for (std::int64_t b = 0; b < batch; ++b) {
            T* to = noise.data + b * noise.apart;
            const auto column = static_cast<std::uint32_t>((p.first_update + k) * batch + b);
            for (std::int64_t s = 1; s <= p.fine && !monitor.stopped(); ++s) {
                const NoiseAddress address =
                    noise_address(p.seeds[replica], stream, (layer - 1) * p.fine + s);
                vector.normal_neurons(address, column, tile.first, tile.count,
                                      s == 1 ? to : increment);
                if (s > 1) vector.axpy(T(1), increment, tile.count, to);
                if (team.polls && s % 64 == 0) monitor.poll();
            }
            if (p.fine > 1) vector.scale(scale, to, tile.count, to);
        }
    }

    // Inner products of the next layer's block with everything it will be compared with.
    void reduce(std::int64_t index, const Tile& tile) const {
        const std::int64_t layer = layer_at(index), count = tile.count;
        const std::int64_t rank = h.ranks[side][layer - 1], across = h.ranks[other()][layer - 1];
        const Products to = products(sums(index, tile.chunk), layer);
        const Columns block = block_of(layer, tile);
        widen(block.data, block.apart, count, wide);
        vector.products(h.tile_of(h.basis[side], layer, tile.index), stride, rank, wide, stride,
                        batch, count, ahead(tile), to.b);
        if (stopped_in_tile()) return;
        vector.gram(block.data, block.apart, wide, stride, batch, count, to.zz);
        if (!noise_is_asked(across) || stopped_in_tile()) return;
        const Columns noise = noise_of(layer, tile);
        draw(layer, tile, noise);
        vector.products(h.tile_of(h.images[other()], layer, tile.index), stride, across, wide,
                        stride, batch, count, ahead(tile), to.s);
        if (stopped_in_tile()) return;
        widen(noise.data, noise.apart, count, wide_noise);
        vector.products(h.tile_of(h.basis[other()], layer, tile.index), stride, across, wide_noise,
                        stride, batch, count, ahead(tile), to.z);
    }

    // Adds the sums of all chunks, `apart` from one to the next, in increasing order and divides by
    // n.
    void gather(const double* first, std::int64_t apart, std::int64_t count) const {
        std::fill_n(combined, count, 0.0);
        for (std::int64_t chunk = 0; chunk < h.chunks; ++chunk) {
            const double* from = first + chunk * apart;
            for (std::int64_t i = 0; i < count; ++i) combined[i] += from[i];
        }
        for (std::int64_t i = 0; i < count; ++i) combined[i] /= static_cast<double>(n);
    }

    // The reductions of a layer over all neurons, from those of its chunks.
    Products gather_products(const double* first, std::int64_t layer) const {
        gather(first, h.slot_size, product_count(layer));
        const Products to = products(combined, layer);
        for (std::int64_t i = 0; i < batch; ++i) {
            for (std::int64_t j = i + 1; j < batch; ++j) {
                to.zz[i * batch + j] = to.zz[j * batch + i];
            }
        }
        return to;
    }

    // Everything the sweep of a layer needs, from the sums over all neurons.
    void solve(std::int64_t index) {
        const std::int64_t layer = layer_at(index);
        bool settled = algebra.take_apart(layer, gather_products(sums(index, 0), layer));
        settled = given_up() || settled;
        for (int round = 0; !settled && round < kMostRounds; ++round) {
            if (team.polls) monitor.poll();
            settled = refine(index);
        }
        if (!settled) bad.report(index + 1);  // never seen; but no answer rather than a wrong one
        if (!stopped()) algebra.answer();
    }

    // A round for a nearly dependent block; returns whether every column is settled, or no matter.
    bool refine(std::int64_t index) {
        const std::int64_t layer = layer_at(index);
        algebra.separate();
        team.for_tiles(h.chunks, 1, [&](std::int64_t chunk, std::int64_t) {
            std::fill_n(sums(index + 1, chunk), product_count(layer), 0.0);
            const Products to = products(sums(index + 1, chunk), layer);
            for_tiles_of(chunk, [&](const Tile& tile) { subtract(layer, tile, to); });
        });
        if (sync_and_halt()) return true;
        const Products of_rest = gather_products(sums(index + 1, 0), layer);
        team.sync();
        const bool settled = algebra.take_rest_apart(layer, of_rest);
        return given_up() || settled;
    }

    // Whether all give up where some may have, in the middle of what they say: then it is no
    // matter, and nobody may act on it alone.
    bool given_up() { return long_algebra && sync_and_halt(); }

    // The sweep of refine().
    void subtract(std::int64_t layer, const Tile& tile, Products to) const {
        const std::int64_t count = tile.count;
        const T* basis = h.tile_of(h.basis[side], layer, tile.index);
        const Columns residual = residual_of(layer, tile);
        T* block = h.block + tile.first;
        const Terms<T> off{basis, stride, step.p, step.off_basis, 0};
        vector.combine(&off, 1, batch, count, residual.data, residual.apart, block, n);
        for (std::int64_t j = 1; j < batch; ++j) {
            if (!step.open[j]) continue;
            const Terms<T> before{block, n, j, step.off_block + j * batch, 0};
            vector.combine(&before, 1, 1, count, block + j * n, n, block + j * n, n);
        }
        if (stopped_in_tile()) return;
        widen(block, n, count, wide);
        vector.products(basis, stride, step.p, wide, stride, batch, count, 0, to.b);
        if (stopped_in_tile()) return;
        vector.gram(block, n, wide, stride, batch, count, to.zz);
        if (!reused() || stopped_in_tile()) return;
        vector.products(h.tile_of(h.images[other()], layer, tile.index), stride, step.q, wide,
                        stride, batch, count, 0, to.s);
    }

    // Makes the next features or adjoints and stores the new columns, in this order: noise lies
    // where images will.
    void update(std::int64_t index, const Tile& tile) const {
        const std::int64_t layer = layer_at(index), first = tile.first, count = tile.count;
        const Columns noise = noise_of(layer, tile);
        if (!noise_is_asked(step.q)) draw(layer, tile, noise);
        if (stopped_in_tile()) return;
        const T* other_basis = h.tile_of(h.basis[other()], layer, tile.index);
        const T* before = features_of(layer - 1) + first;
        T* out = forward() ? features_of(layer) + first : increment;
        std::int64_t out_stride = forward() ? n : stride;
        const T* start = forward() && p.stack.skip ? before : nullptr;
        const Terms<T> terms[] = {
            {h.tile_of(h.images[side], layer, tile.index), stride, step.p, step.images,
             ahead(tile)},
            {noise.data, noise.apart, batch, step.noise, noise.ahead},
            {other_basis, stride, step.uses_other ? step.q : 0, step.other, ahead(tile)}};
        vector.combine(terms, 3, batch, count, start, n, out, out_stride);
        if (stopped_in_tile()) return;
        if (coupled()) {
            const Terms<T> coupling{other_basis, stride, step.q, step.coupling, 0};
            T* sum = h.accumulated + first;
            vector.combine(&coupling, 1, batch, count, sum, n, sum, n);
        }
        if (!forward()) {
            const T* above = adjoints.layer(p.stack, layer) + first;
            T* below = adjoints.layer(p.stack, layer - 1) + first;
            for (std::int64_t b = 0; b < batch; ++b) {
                vector.adjoint_step(p.stack.activation, p.stack.skip ? above + b * n : nullptr,
                                    before + b * n, increment + b * stride,
                                    static_cast<T>(p.stack.branch_factor), count, below + b * n);
            }
            out = below;
            out_stride = n;
        }
        for (std::int64_t b = 0; b < batch; ++b) {
            if (!vector.all_finite(out + b * out_stride, count)) bad.report(index + 1);
        }
        if (keep && step.rank > 0 && !stopped_in_tile()) store_columns(index, tile, noise);
    }

    // The new columns of the basis and their images, and the products by which they are measured.
    void store_columns(std::int64_t index, const Tile& tile, Columns noise) const {
        const std::int64_t layer = layer_at(index), count = tile.count, rank = step.rank;
        T* basis = h.tile_of(h.basis[side], layer, tile.index);
        T* fresh = basis + step.p * stride;
        T* image = h.tile_of(h.images[side], layer, tile.index) + step.p * stride;
        const Columns at = pivots_of(residual_of(layer, tile), count);
        const Terms<T> along_basis{basis, stride, step.p, step.from_basis, 0};
        vector.combine(&along_basis, 1, rank, count, at.data, at.apart, increment, stride);
        if (stopped_in_tile()) return;
        const Terms<T> residual{increment, stride, rank, step.inverse, 0};
        vector.combine(&residual, 1, rank, count, nullptr, 0, fresh, stride);
        for (std::int64_t i = 0; i < rank; ++i) {
            vector.widen(fresh + i * stride, count, wide + i * stride);
        }
        if (stopped_in_tile()) return;
        vector.products(basis, stride, step.p + rank, wide, stride, rank, count, ahead(tile),
                        measured(index, tile.chunk));
        if (stopped_in_tile()) return;
        const Columns drawn = pivots_of(noise, count);
        const Terms<T> along_other{h.tile_of(h.basis[other()], layer, tile.index), stride,
                                   reused() ? step.q : 0, step.image_shift, 0};
        vector.combine(&along_other, 1, rank, count, drawn.data, drawn.apart, image, stride);
    }

    // The columns of a block that are new directions; copied only if they don't lie in order.
    Columns pivots_of(Columns block, std::int64_t count) const {
        if (step.rank == 1) return {block.data + step.pivot[0] * block.apart, block.apart, 0};
        bool in_order = true;
        for (std::int64_t i = 0; i < step.rank; ++i) in_order = in_order && step.pivot[i] == i;
        if (in_order) return block;
        for (std::int64_t i = 0; i < step.rank; ++i) {
            std::copy_n(block.data + step.pivot[i] * block.apart, count, increment + i * stride);
        }
        return {increment, stride, 0};
    }

    // Makes the new columns of a layer part of what is known; rank 0, when nobody reads it.
    void append(std::int64_t index) {
        gather(measured(index, 0), h.measure_size, (step.p + step.rank) * step.rank);
        algebra.append(layer_at(index), combined);
        if (!forward()) algebra.learn(gradient.sample_weights, gradient.step);
    }

    // What the reductions of a layer already say; rank 0.
    void record(std::int64_t index) {
        const std::int64_t layer = layer_at(index), depth = p.stack.depth;
        const std::int64_t row = replica * (p.updates + (forward() ? 1 : 0)) + k;
        const Records& to = p.records;
        double* kernels = forward() ? to.activation_kernels : to.adjoint_kernels;
        if (kernels) {
            const std::int64_t at = forward() ? row * depth + layer - 1 : row * (depth + 1) + layer;
            std::copy_n(step.xx, batch * batch, kernels + at * batch * batch);
        }
        double* per_layer = forward() ? to.coupling_per_layer : to.backward_coupling_per_layer;
        if (per_layer && reused()) per_layer[row * depth + layer - 1] = algebra.coupling(layer);
        double* kept = forward() ? to.feature_ranks : to.adjoint_ranks;
        if (kept && keep) {
            kept[(replica * p.updates + k) * depth + layer - 1] =
                static_cast<double>(step.p + step.rank);
        }
    }

    void finish_coupling() const {
        double* to =
            forward() ? p.records.coupling_accumulated : p.records.backward_coupling_accumulated;
        if (!to || !coupled()) return;
        team.for_tiles(batch, 1, [&](std::int64_t b, std::int64_t) {
            const T* column = h.accumulated + b * n;
            h.column_sums[b] = vector.dot(column, column, n);
        });
        team.sync();
        if (team.rank != 0) return;
        double sum = 0;
        for (std::int64_t b = 0; b < batch; ++b) sum += h.column_sums[b];
        to[replica * (p.updates + (forward() ? 1 : 0)) + k] = sum / static_cast<double>(batch * n);
    }
};

}  // namespace nfd_fast
