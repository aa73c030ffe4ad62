// How a long computation hears that it should stop, and says how far it is.
#pragma once

#include <atomic>
#include <cstdint>

namespace nfd_fast {

class Monitor {
  public:
    explicit Monitor(std::int64_t total) : total_(total) {}
    virtual ~Monitor() = default;

    // Called by the thread that started the computation, as often as once per tile: cheap unless
    // the implementation finds that enough time has passed to ask its owner.
    void poll() {
        if (!stopped() && !go_on(done_.load(std::memory_order_relaxed), total_)) {
            stopped_.store(true, std::memory_order_relaxed);
        }
    }
    bool stopped() const { return stopped_.load(std::memory_order_relaxed); }
    void advance(std::int64_t steps = 1) { done_.fetch_add(steps, std::memory_order_relaxed); }

    std::int64_t total() const { return total_; }

  protected:
    virtual bool go_on(std::int64_t done, std::int64_t total) = 0;

  private:
    std::int64_t total_;
    std::atomic<std::int64_t> done_{0};
    std::atomic<bool> stopped_{false};
};

}  // namespace nfd_fast
