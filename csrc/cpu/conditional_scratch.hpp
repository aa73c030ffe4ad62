// What a pass of the conditional engine works in, beside what is remembered of each layer.
#pragma once

#include <cstdint>

#include "cpu/conditional_state.hpp"
#include "cpu/team.hpp"
#include "nfd_fast/layer_algebra.hpp"
#include "training/arena.hpp"
#include "training/problem.hpp"

namespace nfd_fast {

template <class T>
struct ConditionalScratch : ConditionalState<T> {
    std::int64_t slot_size, measure_size;  // most numbers of a chunk's sums and of its Gram

    // Of all members.
    T* noise;             // (B, n) of the layer that comes next, where noise_of() says so
    T* block;             // (B, n) Z, where it differs from X
    T* accumulated;       // (B, n) sum of the coupling over layers
    double* sums;         // (2, chunks, slot) reductions of this and the next layer
    double* measured;     // (2, chunks, measure) Gram of the new columns of this and the last layer
    double* column_sums;  // (B)
    Agreement* halt;      // whether to give up
    // Of each.
    Step<T>* steps;     // (members)
    T* tile_x;          // (members, B, tile)
    T* tile_increment;  // (members, B, tile)
    T* tile_noise;      // (members, B, tile)
    double* tile_wide;  // (members, 2, B, tile)
    double* combined;   // (members, slot + measure)

    void lay_out(const Problem<T>& p, Arena& arena, int team_members) {
        ConditionalState<T>::lay_out(p, arena);
        const std::int64_t width = p.stack.width, batch = p.stack.batch;
        const double rows = static_cast<double>(batch),
                     columns = static_cast<double>(this->capacity);
        const double slot = Products::count(columns, columns, rows);
        const double measure = (columns + rows) * rows;
        slot_size = as_size(slot);
        measure_size = as_size(measure);
        const double numbers = rows * static_cast<double>(width);
        arena.take(noise, p.decoupled ? 0 : numbers);
        arena.take(block, numbers);
        arena.take(accumulated, p.keep_coupling ? numbers : 0);
        const double chunk_count = static_cast<double>(this->chunks);
        arena.take(sums, 2 * chunk_count * slot);
        arena.take(measured, 2 * chunk_count * measure);
        arena.take(column_sums, rows);
        arena.take(halt, 1);
        const double members = team_members;
        const double tile = rows * static_cast<double>(this->tile_width);
        arena.take(tile_x, members * tile);
        arena.take(tile_increment, members * tile);
        arena.take(tile_noise, members * tile);
        arena.take(tile_wide, members * 2 * tile);
        arena.take(combined, members * (slot + measure));
        arena.take(steps, members);
        for (int member = 0; member < team_members; ++member) {
            Step<T> step{};
            step.lay_out(arena, this->capacity, batch, batch);
            if (steps) steps[member] = step;
        }
    }
};

}  // namespace nfd_fast
