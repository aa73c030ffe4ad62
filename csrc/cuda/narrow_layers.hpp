// The hidden layers of narrow networks: a pass over all layers and replicas in one launch.
//
// Products of such layers are small: in launches of their own, they would mostly wait for each
// other. Here each block has strips of a few neurons, whose rows (forward) or columns (backward) of
// the matrices it alone reads and updates, and all blocks meet once a layer.
#pragma once

#include <cstdint>

#include "cuda/wave.hpp"
#include "training/arena.hpp"
#include "training/problem.hpp"

namespace nfd_fast::cuda {

// Where one launch is expected to be faster than cuBLAS and the launches between its products. The
// batch is a hard limit, as it has to fit the kernels' registers; the others are not.
constexpr std::int64_t kMostNarrowBatch = 128;
constexpr std::int64_t kMostNarrowWidth = 1024;
constexpr std::int64_t kMostNarrowLayer = 65536;

inline bool is_narrow(const LayerStack& s) {
    return s.batch <= kMostNarrowBatch && s.width <= kMostNarrowWidth &&
           s.layer_size() <= kMostNarrowLayer;
}

template <class T>
class NarrowLayers {
  public:
    // With so many replicas every multiprocessor has several strips.
    static int most_replicas(const LayerStack& stack);

    void lay_out(const LayerStack& stack, Arena& arena, int replicas);
    void prepare(const LayerStack& stack, const Wave<T>& wave);

    // `hidden` and `backward_hidden` are (replicas, L, n, n).
    void forward(const LayerStack& stack, const Wave<T>& wave, const T* hidden) const;
    // The adjoints go through `backward_hidden`; it, and `hidden` where that is another, move by
    // step = eta beta m if `update`.
    void backward(const LayerStack& stack, const Wave<T>& wave, T* hidden, T* backward_hidden,
                  bool all_adjoints, bool update, double step) const;
    // The update alone, by the adjoints of all layers.
    void update(const LayerStack& stack, const Wave<T>& wave, T* hidden, double step) const;

  private:
    T* packed_;  // (replicas, 2, n, packed batch) of the layers l and l-1, see narrow_layers.cu
    unsigned* arrived_;
    std::int64_t packed_count_;
    int forward_blocks_ = 0, backward_blocks_ = 0, update_blocks_ = 0;  // that run at the same time
};

}  // namespace nfd_fast::cuda
