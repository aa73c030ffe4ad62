// The hidden layers as every engine and device sees them: sizes and where arrays lie (DESIGN 1).
#pragma once

#include <cstdint>

#include "nfd_fast/config.hpp"

namespace nfd_fast {

constexpr std::int64_t kMostTile = 256;

// A stack of hidden layers on one batch. Arrays have the width last: features (L+1, B, n).
struct LayerStack {
    std::int64_t width;
    std::int64_t depth;
    std::int64_t batch;
    double branch_factor;  // beta
    bool skip;
    int activation;
    std::int64_t whole_batch = 0;  // where this is some columns of a batch, all of them

    NFD_FAST_HD std::int64_t layer_size() const {
        return (whole_batch > 0 ? whole_batch : batch) * width;
    }
    NFD_FAST_HD std::int64_t matrix_size() const { return width * width; }

    // Of a column in a packed batch: no pack has more than 16 numbers.
    NFD_FAST_HD std::int64_t padded_width() const { return (width + 15) / 16 * 16; }

    // Neurons per tile. It depends on the width alone (see Team::for_tiles) and balances threads
    // on narrow layers against the efficiency of the products on wide ones.
    std::int64_t tile() const { return width < 4096 ? 128 : kMostTile; }
};

// Where adjoints live: all L+1 layers, or two slots used in turn when nobody reads them later.
template <class T>
struct AdjointStore {
    T* data;
    bool all_layers;
    const T* sources = nullptr;  // (L, B, n) that enter layers 0 ... L-1 besides; may be null
    NFD_FAST_HD T* layer(const LayerStack& stack, std::int64_t l) const {
        return data + (all_layers ? l : l % 2) * stack.layer_size();
    }
    // What enters layer l besides, or null.
    NFD_FAST_HD const T* entering(const LayerStack& stack, std::int64_t l) const {
        return sources ? sources + l * stack.layer_size() : nullptr;
    }
};

// The step of the hidden weights: sum over the batch of w_b G_l[b] phi(H_{l-1}[b])^T times `step`.
struct Gradient {
    const double* sample_weights;  // w_b
    double step;                   // eta beta m; 0 if the hidden weights don't move
};

}  // namespace nfd_fast
