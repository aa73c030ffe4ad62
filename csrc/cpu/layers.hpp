// The hidden layers: forward pass, backward pass and update of one network (DESIGN 1).
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>

#include "cpu/team.hpp"
#include "training/layer_stack.hpp"
#include "training/monitor.hpp"

namespace nfd_fast {

// How many layers a pass had made, its start included, when it first met a non-finite number: the
// layer itself forward, depth minus the layer backward.
class FirstBadStep {
  public:
    void report(std::int64_t step) {
        std::int64_t seen = step_.load(std::memory_order_relaxed);
        while (step < seen && !step_.compare_exchange_weak(seen, step)) {
        }
    }
    void reset() { step_.store(kNone); }
    bool found() const { return step_.load() != kNone; }
    std::int64_t step() const { return step_.load(); }

  private:
    static constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::max();
    std::atomic<std::int64_t> step_{kNone};
};

// How many numbers the `scratch` of the following holds for a team.
template <class T>
double scratch_size(const LayerStack& stack, int members);

// Whether the following may be given some columns of a batch (LayerStack::whole_batch) and the
// results are the same, bit for bit, as those of all of them together.
template <class T>
bool takes_columns(const LayerStack& stack);

// Fills features 1 ... L from features 0. One barrier a layer, and one before. All members of the
// team call it; the results are complete when it returns on any one.
template <class T>
void forward_layers(const LayerStack& stack, const T* hidden, T* features, T* scratch,
                    FirstBadStep& bad, Monitor& monitor, Team team);

// One SGD step of the hidden weights: W_l -= step/sqrt(n) sum_b w_b G_l[b] phi(H_{l-1}[b])^T, with
// step = eta beta m and w_b the sample weights.
template <class T>
struct HiddenUpdate {
    T* hidden = nullptr;           // null: nothing moves
    T* backward_hidden = nullptr;  // moves by the same amount when present
    const double* sample_weights = nullptr;
    double step = 0;
    // In update_layers: the matrices become their step, they are written and not read.
    bool replace = false;
};

// Fills adjoints L-1 ... 0 from adjoint L with the transposes of `backward_hidden` (the forward
// weights where they are reused), then moves the weights of each layer as soon as they have been
// used. One barrier a layer, or two and one before where the matrices are cut by rows: a member
// reads and writes only its own part of a matrix, so that no other can see it half updated.
template <class T>
void backward_layers(const LayerStack& stack, const T* backward_hidden, const T* features,
                     AdjointStore<T> adjoints, const HiddenUpdate<T>& update, T* scratch,
                     FirstBadStep& bad, Monitor& monitor, Team team);

// The update alone, from adjoints of all layers. Complete when it has returned on every member.
template <class T>
void update_layers(const LayerStack& stack, const T* features, const T* adjoints,
                   const HiddenUpdate<T>& update, T* scratch, Monitor& monitor, Team team);

// The same three as whole computations, with their own scratch and a team of up to `threads`. They
// throw std::bad_alloc before anything is written, and stop early if the monitor says so.
template <class T>
void run_forward(const LayerStack& stack, const T* hidden, T* features, int threads,
                 Monitor& monitor);
template <class T>
void run_backward(const LayerStack& stack, const T* backward_hidden, const T* features,
                  AdjointStore<T> adjoints, int threads, Monitor& monitor);
template <class T>
void run_update(const LayerStack& stack, const T* features, const T* adjoints,
                const HiddenUpdate<T>& update, int threads, Monitor& monitor);

}  // namespace nfd_fast
