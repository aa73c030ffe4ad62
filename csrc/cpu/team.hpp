// Threads that work on one problem together.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace nfd_fast {

// The place of the calling thread in its team. Every member calls the same functions in the same
// order; work is dealt by tile, and sync() waits for all.
struct Team {
    int rank = 0;
    int size = 1;
    bool polls = true;  // whether this member is the thread that started it all: only that may poll

    void sync() const {
        if (size > 1) {
#pragma omp barrier
        }
    }

    // Calls f(first, count) for this member's share of the tiles of [0, total). Tiles depend on
    // `total` and `tile` alone, so a sum or product formed per tile has the same bits for any team.
    template <class F>
    void for_tiles(std::int64_t total, std::int64_t tile, F f) const {
        for (std::int64_t first = rank * tile; first < total; first += size * tile) {
            f(first, std::min(tile, total - first));
        }
    }
};

// Runs f(team) on `threads` threads. The calling thread is rank 0. `f` must not throw.
template <class F>
void run_team(int threads, F f) {
    if (threads <= 1) {
        f(Team{});
        return;
    }
#pragma omp parallel num_threads(threads)
    f(Team{omp_get_thread_num(), omp_get_num_threads(), omp_get_thread_num() == 0});
}

}  // namespace nfd_fast
