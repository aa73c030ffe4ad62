// The dense engine on a device: weight matrices are stored (DESIGN 1).

#include "cuda/engine.hpp"
#include "cuda/narrow_layers.hpp"
#include "cuda/noise.hpp"
#include "cuda/replicas.hpp"
#include "cuda/wide_layers.hpp"

namespace nfd_fast::cuda {

template <class T>
struct DenseHidden {
    static constexpr bool records_kernels = false;

    T* hidden;           // (count, L, n, n)
    T* backward_hidden;  // of the decoupled network; else `hidden`
    NarrowLayers<T> narrow;
    WideLayers<T> wide;

    static int most_replicas(const Problem<T>& p) {
        return is_narrow(p.stack) ? NarrowLayers<T>::most_replicas(p.stack) : 1;
    }

    static DenseHidden lay_out(const Problem<T>& p, Arena& arena, int replicas) {
        DenseHidden h{};
        const double n = static_cast<double>(p.stack.width);
        const double count = replicas * static_cast<double>(p.stack.depth) * n * n;
        arena.take(h.hidden, count);
        if (p.decoupled) {
            arena.take(h.backward_hidden, count);
        } else {
            h.backward_hidden = h.hidden;
        }
        if (is_narrow(p.stack)) {
            h.narrow.lay_out(p.stack, arena, replicas);
        } else {
            h.wide.lay_out(p.stack, arena, p.train_hidden);
        }
        return h;
    }

    void initialize(const Problem<T>& p, const Wave<T>& wave) {
        if (is_narrow(p.stack)) {
            narrow.prepare(p.stack, wave);
        } else {
            wide.prepare(wave);
        }
        const auto start = [&](nfd_fast::Stream tag, T* own, const T* given) {
            if (given) {
                copy(p, wave, own, given);
            } else {
                fill_matrices(wave.seeds, wave.count, tag, p.stack.depth, p.stack.width,
                              p.stack.width, p.fine, own, wave.stream);
            }
        };
        start(nfd_fast::Stream::hidden, hidden, p.given.hidden);
        if (p.decoupled) {
            start(nfd_fast::Stream::backward_hidden, backward_hidden, p.given.backward_hidden);
        }
    }

    void forward(const Problem<T>& p, const Wave<T>& wave, std::int64_t) {
        if (is_narrow(p.stack)) {
            narrow.forward(p.stack, wave, hidden);
        } else {
            wide.forward(p.stack, wave, hidden);
        }
    }

    void backward(const Problem<T>& p, const Wave<T>& wave, std::int64_t, double step) {
        if (is_narrow(p.stack)) {
            narrow.backward(p.stack, wave, hidden, backward_hidden, p.keep_adjoints, p.train_hidden,
                            step);
        } else {
            wide.backward(p.stack, wave, hidden, backward_hidden, p.keep_adjoints, p.train_hidden,
                          step);
        }
    }

    // Weights that are to be overwritten go back where they came from.
    void finish(const Problem<T>& p, const Wave<T>& wave) {
        if (!p.overwrite || !p.train_hidden) return;
        copy(p, wave, p.given.hidden, hidden);
        if (p.decoupled) copy(p, wave, p.given.backward_hidden, backward_hidden);
    }

  private:
    static void copy(const Problem<T>& p, const Wave<T>& wave, T* to, const T* from) {
        const std::int64_t count = p.stack.depth * p.stack.matrix_size();
        check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(count) * sizeof(T),
                              cudaMemcpyDefault, wave.stream),
              "a copy");
    }
};

template <class T>
double dense_bytes(const Problem<T>& problem) {
    return engine_bytes<T, DenseHidden>(problem);
}

template <class T>
void train_dense(const Problem<T>& problem, Monitor& monitor) {
    train_replicas<T, DenseHidden>(problem, monitor);
}

template double dense_bytes<float>(const Problem<float>&);
template double dense_bytes<double>(const Problem<double>&);
template void train_dense<float>(const Problem<float>&, Monitor&);
template void train_dense<double>(const Problem<double>&, Monitor&);

}  // namespace nfd_fast::cuda
