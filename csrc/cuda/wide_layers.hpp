// The hidden layers of wide networks, one replica at a time: products by cuBLAS, and one small
// kernel after each.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "cuda/cublas.hpp"
#include "cuda/graph.hpp"
#include "cuda/wave.hpp"
#include "training/arena.hpp"
#include "training/problem.hpp"

namespace nfd_fast::cuda {

template <class T>
class WideLayers {
  public:
    // With `moving` matrices a backward pass can update.
    void lay_out(const LayerStack& stack, Arena& arena, bool moving);
    // Throws DeviceError if cuBLAS is missing.
    void prepare(const Wave<T>& wave);

    // As of NarrowLayers. The arguments are the same in every pass: the second is captured.
    void forward(const LayerStack& stack, const Wave<T>& wave, const T* hidden) const;
    void backward(const LayerStack& stack, const Wave<T>& wave, T* hidden, T* backward_hidden,
                  bool all_adjoints, bool update, double step) const;
    void update(const LayerStack& stack, const Wave<T>& wave, T* hidden, double step) const;

  private:
    // Layers whose weighted adjoints are there at the same time: matrices may move so much later
    // than the adjoints have passed them.
    static constexpr std::int64_t kWeighted = 3;

    T* weighted(const LayerStack& stack, std::int64_t l) const {
        return weighted_ + l % kWeighted * stack.layer_size();
    }
    void move(const LayerStack& stack, const Cublas& cublas, std::int64_t l, T* matrices) const;

    // Where matrices move while the adjoints go on through the layers below: the product with a
    // whole batch keeps the multiprocessors busy, the move of a matrix its memory.
    struct Beside {
        explicit Beside(void* workspace) : cublas(stream.get(), workspace) {}
        Event multiplied;        // the adjoints, by the matrix of a layer
        Event moved[kWeighted];  // the matrix of a layer, by its place among the weighted adjoints
        Stream stream;
        Cublas cublas;
    };

    struct Library {
        Library(cudaStream_t stream, void* workspace) : cublas(stream, workspace) {}
        Cublas cublas;
        std::optional<Beside> beside;  // two streams must not share a workspace
        Graph forward, backward;
    };

    T* activations_;  // (L, B, n): phi(H_{l-1})
    T* products_;     // (B, n)
    T* weighted_;     // (kWeighted, B, n): -step/sqrt(n) w_b G_l
    unsigned char* workspace_;
    unsigned char* beside_workspace_;  // null where nothing moves
    std::shared_ptr<Library> library_;
};

}  // namespace nfd_fast::cuda
