// The hidden layers of wide networks, one replica at a time: products by cuBLAS, and one small
// kernel after each.
#pragma once

#include <cstdint>
#include <memory>

#include "cuda/cublas.hpp"
#include "cuda/graph.hpp"
#include "cuda/wave.hpp"
#include "training/arena.hpp"
#include "training/problem.hpp"

namespace nfd_fast::cuda {

template <class T>
class WideLayers {
  public:
    void lay_out(const LayerStack& stack, Arena& arena);
    // Throws DeviceError if cuBLAS is missing.
    void prepare(const Wave<T>& wave);

    // As of NarrowLayers. The arguments are the same in every pass: the second is captured.
    void forward(const LayerStack& stack, const Wave<T>& wave, const T* hidden) const;
    void backward(const LayerStack& stack, const Wave<T>& wave, T* hidden, T* backward_hidden,
                  bool all_adjoints, bool update, double step) const;
    void update(const LayerStack& stack, const Wave<T>& wave, T* hidden, double step) const;

  private:
    void move(const LayerStack& stack, std::int64_t l, T* matrices) const;

    struct Library {
        Library(cudaStream_t stream, void* workspace) : cublas(stream, workspace) {}
        Cublas cublas;
        Graph forward, backward;
    };

    T* activations_;  // (L, B, n): phi(H_{l-1})
    T* products_;     // (B, n)
    T* weighted_;     // (2, B, n): -step/sqrt(n) w_b G_l, of the layers l and l-1
    unsigned char* workspace_;
    std::shared_ptr<Library> library_;
};

}  // namespace nfd_fast::cuda
