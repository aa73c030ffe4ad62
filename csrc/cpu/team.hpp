// Threads that work on one problem together.
#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>
#include <thread>

namespace nfd_fast {

// Waits by spinning for about the length of a layer and then gives its processor away: where other
// programs run too, members that only spin keep the late one from being scheduled.
class Barrier {
  public:
    explicit Barrier(int size) : size_(size) {}

    void wait() {
        const unsigned phase = phase_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
            if (spins > kSpins) {
                std::this_thread::yield();
            } else {
#if defined(__x86_64__) && defined(__GNUC__)
                __builtin_ia32_pause();
#endif
            }
        }
    }

  private:
    static constexpr int kSpins = 4096;

    const int size_;
    // Apart, so that arriving does not disturb those who watch the phase.
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> phase_{0};
};

// The place of the calling thread in its team. Every member calls the same functions in the same
// order; work is dealt by tile, and sync() waits for all.
struct Team {
    int rank = 0;
    int size = 1;
    bool polls = true;  // whether this member is the thread that started it all: only that may poll
    Barrier* barrier = nullptr;  // of a team of several

    void sync() const {
        if (size > 1) barrier->wait();
    }

    struct Share {
        std::int64_t first, end;
    };
    // This member's share of `count` things. Rank 0 has one if there is any: it alone may poll.
    Share share_of(std::int64_t count) const {
        return {(count * rank + size - 1) / size, (count * (rank + 1) + size - 1) / size};
    }

    // Calls f(first, count) for this member's share of the tiles of [0, total), which follow each
    // other: processors ask in advance for the memory after what they read, and should not take
    // from others what these are writing. Tiles depend on `total` and `tile` alone, so a sum or
    // product formed per tile has the same bits for any team.
    template <class F>
    void for_tiles(std::int64_t total, std::int64_t tile, F f) const {
        const Share share = share_of((total + tile - 1) / tile);
        for (std::int64_t i = share.first; i < share.end; ++i) {
            f(i * tile, std::min(tile, total - i * tile));
        }
    }
};

// What a team agrees on, shared by its members. One member answers for all: one that gave up alone
// would leave the others waiting.
class Agreement {
  public:
    // Waits for all and returns rank 0's answer. Every member counts the turns.
    bool reach(const Team& team, std::int64_t turn, bool answer) {
        bool& agreed = answers_[turn % 2];  // by turns: the last answer may still be being read
        if (team.rank == 0) agreed = answer;
        team.sync();
        return agreed;
    }

  private:
    bool answers_[2];  // each written before it is read
};

// Runs f(team) on up to `threads` threads. The calling thread is rank 0. `f` must not throw.
template <class F>
void run_team(int threads, F f) {
    if (threads <= 1) {
        f(Team{});
        return;
    }
    std::optional<Barrier> barrier;  // made when the size is known: OpenMP may give fewer threads
#pragma omp parallel num_threads(threads)
    {
#pragma omp single
        barrier.emplace(omp_get_num_threads());
        const int rank = omp_get_thread_num();
        f(Team{rank, omp_get_num_threads(), rank == 0, &*barrier});
    }
}

}  // namespace nfd_fast
