#include <algorithm>
#include <cmath>

#include "cuda/activate.hpp"
#include "cuda/barrier.hpp"
#include "cuda/narrow_layers.hpp"

namespace nfd_fast::cuda {
namespace {

// What a block does for one strip and layer is a product of 8 rows with the whole batch. The inner
// index is cut into chunks, which fit shared memory, and every chunk among the warps; a lane has
// two rows and four columns per group of 32. The sums of the warps are added in their order. All of
// it depends on the width and the batch alone, and so do the bits.
constexpr int kStrip = 8;
constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kGroup = 32;  // columns of a batch
constexpr std::int64_t kMostStrips = 16384;

template <class T>
struct alignas(16) Four {
    T of[4];
};
template <class T>
struct alignas(2 * sizeof(T)) Two {
    T of[2];
};

template <class T>
struct Layers {
    LayerStack stack;
    std::int64_t replicas;
    T* hidden;           // (replicas, L, n, n); only read forward
    T* backward_hidden;  // the same; where another one, `hidden` only moves along
    T* features;         // (replicas, L+1, B, n)
    AdjointStore<T> adjoints;
    std::int64_t stored_adjoints;  // layers
    const double* weights;         // (replicas, B)
    int* bad_step;                 // (replicas)
    bool update;
    double step;  // eta beta m/sqrt(n)
    // phi(H_l) or G_l of the layer in work and of the next, neuron by neuron, with zeros where a
    // batch does not fill its groups: (replicas, 2, n, packed).
    T* packed;
    unsigned* arrived;
};

// How a batch of kGroups groups lies in shared memory: padded, so that neither lanes that read a
// row nor lanes that read the same columns of different rows collide.
template <class T, int kGroups>
struct Shared {
    static constexpr int packed = kGroup * kGroups;
    // Numbers of the inner index in a chunk: as many bytes of a batch for every type and size.
    static constexpr int chunk = static_cast<int>((std::size_t{1} << 15) / (packed * sizeof(T)));
    static constexpr int batch_stride = packed + 4;
    static constexpr int row_stride = chunk + 4;  // of a strip's rows

    T* batch;     // (chunk, packed)
    T* sums;      // (warps, strip, packed)
    T* matrix;    // forward (strip, chunk), backward (chunk, strip)
    T* step;      // (chunk, strip) that the matrix moves by
    T* weighted;  // (packed, strip): -step/sqrt(n) w_b phi(H)

    static constexpr std::size_t bytes(bool backward) {
        return sizeof(T) * static_cast<std::size_t>(chunk * batch_stride +
                                                    kWarps * kStrip * packed + kStrip * row_stride +
                                                    (backward ? kStrip * (chunk + packed) : 0));
    }
    __device__ explicit Shared(T* at)
        : batch(at),
          sums(batch + chunk * batch_stride),
          matrix(sums + kWarps * kStrip * packed),
          step(matrix + kStrip * row_stride),
          weighted(step + chunk * kStrip) {}
};

// For all `at` < count: the block's threads take turns, and have many loads on their way before the
// first is stored.
template <int kHeld, class Element, class Load, class Store>
__device__ inline void move(int count, Load load, Store store) {
    const int thread = static_cast<int>(threadIdx.x);
    for (int start = thread; start < count; start += kHeld * kThreads) {
        Element held[kHeld];
        NFD_FAST_UNROLL
        for (int i = 0; i < kHeld; ++i) {
            const int at = start + i * kThreads;
            held[i] = at < count ? load(at) : Element{};
        }
        NFD_FAST_UNROLL
        for (int i = 0; i < kHeld; ++i) {
            const int at = start + i * kThreads;
            if (at < count) store(at, held[i]);
        }
    }
}

// One block's work on one strip of one replica.
template <class T, int kGroups>
class Strip {
  public:
    __device__ Strip(const Layers<T>& layers, std::int64_t strip)
        : a_(layers),
          s_(layers.stack),
          shared_(shared_memory<T>()),
          thread_(static_cast<int>(threadIdx.x)) {
        const std::int64_t strips = (s_.width + kStrip - 1) / kStrip;
        replica_ = strip / strips;
        first_ = strip % strips * kStrip;
    }

    // phi(H_0), or G_L, for the other blocks.
    __device__ void pack_features() const {
        const T* layer = features(0);
        for_own([&](int b, int row, std::int64_t at) {
            pack(0, b, row, activate(s_.activation, layer[at]));
        });
    }
    __device__ void pack_adjoints(std::int64_t l) const {
        const T* layer = adjoints(l);
        for_own([&](int b, int row, std::int64_t at) { pack(l, b, row, layer[at]); });
    }

    // Part of the matrices that a layer needs first; nobody else writes it.
    __device__ void load_rows(std::int64_t l, std::int64_t start) const {
        const T* matrix = a_.hidden + matrix_at(l);
        const int columns = inner_count(start);
        // Runs of a warp's length: from then on, neighbours load neighbours.
        const int runs = (columns + 31) / 32;
        move<16, T>(
            kStrip * runs * 32,
            [&](int at) {
                const std::int64_t i = first_ + at / 32 % kStrip;
                const int k = at / (32 * kStrip) * 32 + at % 32;
                return i < s_.width && k < columns ? matrix[i * s_.width + start + k] : T(0);
            },
            [&](int at, T value) {
                const int k = at / (32 * kStrip) * 32 + at % 32;
                shared_.matrix[at / 32 % kStrip * Here::row_stride + k] = value;
            });
    }
    __device__ void load_columns(std::int64_t l, std::int64_t start) const {
        const T* matrix = a_.backward_hidden + matrix_at(l);
        const int rows = inner_count(start);
        move<16, T>(
            padded(rows) * kStrip,
            [&](int at) {
                const std::int64_t j = first_ + at % kStrip;
                const int k = at / kStrip;
                return j < s_.width && k < rows ? matrix[(start + k) * s_.width + j] : T(0);
            },
            [&](int at, T value) { shared_.matrix[at] = value; });
    }

    // H_l = H_{l-1} + beta W phi(H_{l-1})/sqrt(n), with `loaded` rows of the first chunk.
    __device__ void forward(std::int64_t l, T scale, bool loaded) const {
        Sums sums{};
        for (std::int64_t start = 0; start < s_.width; start += Here::chunk) {
            if (start > 0) __syncthreads();  // the chunk before has been read
            if (start > 0 || !loaded) load_rows(l, start);
            load_batch(l - 1, start);
            __syncthreads();
            multiply_rows(inner_count(start), sums);
        }
        put_sums(sums);
        __syncthreads();
        const T* before = features(l - 1);
        T* after = features(l);
        for_own([&](int b, int row, std::int64_t at) {
            const T sum = sum_of(row, b);
            const T value = s_.skip ? fused_multiply_add(scale, sum, before[at]) : scale * sum;
            after[at] = value;
            note_unless_finite(value, static_cast<int>(l), a_.bad_step + replica_);
            if (l < s_.depth) pack(l, b, row, activate(s_.activation, value));
        });
    }

    // G_{l-1} = G_l + beta phi'(H_{l-1}) (W'^T G_l)/sqrt(n), and the step of the strip's columns.
    __device__ void backward(std::int64_t l, T scale, bool loaded) const {
        Sums sums{};
        for (std::int64_t start = 0; start < s_.width; start += Here::chunk) {
            const int count = inner_count(start);
            if (start > 0 || !loaded) load_columns(l, start);
            load_batch(l, start);
            if (a_.update && start == 0) weigh_features(l - 1);
            __syncthreads();
            multiply_columns(count, sums);
            if (a_.update) find_step(count);
            __syncthreads();
            if (a_.update) take_step(l, start, count);
            if (a_.update) __syncthreads();
        }
        put_sums(sums);
        __syncthreads();
        const T* before = features(l - 1);
        const T* above = adjoints(l);
        T* below = adjoints(l - 1);
        const T* entering = a_.adjoints.entering(s_, l - 1);
        for_own([&](int b, int row, std::int64_t at) {
            const T slope = scale * differentiate(s_.activation, before[at]);
            const T sum = sum_of(row, b);
            T value = s_.skip ? fused_multiply_add(slope, sum, above[at]) : slope * sum;
            if (entering) value += entering[at];
            below[at] = value;
            note_unless_finite(value, static_cast<int>(s_.depth - (l - 1)), a_.bad_step + replica_);
            if (l > 1) pack(l - 1, b, row, value);
        });
    }

    // The step of the strip's columns alone, with packed adjoints.
    __device__ void update(std::int64_t l) const {
        for (std::int64_t start = 0; start < s_.width; start += Here::chunk) {
            const int count = inner_count(start);
            load_columns(l, start);
            load_batch(l, start);
            if (start == 0) weigh_features(l - 1);
            __syncthreads();
            find_step(count);
            __syncthreads();
            take_step(l, start, count);
            __syncthreads();
        }
    }

  private:
    using Here = Shared<T, kGroups>;
    struct Sums {
        T of[2][kGroups][4];
    };

    __device__ T* features(std::int64_t l) const {
        return a_.features + (replica_ * (s_.depth + 1) + l) * s_.layer_size();
    }
    __device__ T* adjoints(std::int64_t l) const {
        return a_.adjoints.layer(s_, l) + replica_ * a_.stored_adjoints * s_.layer_size();
    }
    __device__ std::int64_t matrix_at(std::int64_t l) const {
        return (replica_ * s_.depth + l - 1) * s_.matrix_size();
    }
    __device__ T* packed(std::int64_t l) const {
        return a_.packed + (2 * replica_ + l % 2) * s_.width * Here::packed;
    }
    __device__ void pack(std::int64_t l, int b, int row, T value) const {
        packed(l)[(first_ + row) * Here::packed + b] = value;
    }

    __device__ int inner_count(std::int64_t start) const {
        const std::int64_t left = s_.width - start;
        return static_cast<int>(left < Here::chunk ? left : Here::chunk);
    }
    // Each warp has as many, a multiple of four.
    __device__ static int per_warp(int count) {
        return (count + 4 * kWarps - 1) / (4 * kWarps) * 4;
    }
    __device__ static int padded(int count) { return kWarps * per_warp(count); }

    // f(b, row, place in a layer) for all numbers of this strip.
    template <class F>
    __device__ void for_own(F f) const {
        for (int at = thread_; at < kStrip * static_cast<int>(s_.batch); at += kThreads) {
            const int b = at / kStrip, row = at % kStrip;
            if (first_ + row < s_.width) f(b, row, b * s_.width + first_ + row);
        }
    }

    __device__ void load_batch(std::int64_t l, std::int64_t start) const {
        constexpr int across = Here::packed / 4;
        const int rows = inner_count(start);
        const T* from = packed(l) + start * Here::packed;
        move<64 / sizeof(T), Four<T>>(
            padded(rows) * across,
            [&](int at) {
                return at / across < rows ? *reinterpret_cast<const Four<T>*>(from + 4 * at)
                                          : Four<T>{};
            },
            [&](int at, const Four<T>& four) {
                *reinterpret_cast<Four<T>*>(shared_.batch + at / across * Here::batch_stride +
                                            at % across * 4) = four;
            });
    }

    __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
    __device__ static int lane_row() { return lane() / 8 * 2; }
    __device__ static int lane_column() { return lane() % 8 * 4; }

    __device__ Four<T> batch_at(int k, int group) const {
        return *reinterpret_cast<const Four<T>*>(shared_.batch + k * Here::batch_stride +
                                                 group * kGroup + lane_column());
    }

    __device__ void multiply_rows(int count, Sums& sums) const {
        const int each = per_warp(count), first = thread_ / 32 * each;
        const T* rows = shared_.matrix + lane_row() * Here::row_stride;
        for (int k = first; k < first + each; k += 4) {
            const auto upper = *reinterpret_cast<const Four<T>*>(rows + k);
            const auto lower = *reinterpret_cast<const Four<T>*>(rows + Here::row_stride + k);
            NFD_FAST_UNROLL
            for (int inner = 0; inner < 4; ++inner) {
                add(upper.of[inner], lower.of[inner], k + inner, sums);
            }
        }
    }
    __device__ void multiply_columns(int count, Sums& sums) const {
        const int each = per_warp(count), first = thread_ / 32 * each;
        for (int k = first; k < first + each; ++k) {
            const auto two =
                *reinterpret_cast<const Two<T>*>(shared_.matrix + k * kStrip + lane_row());
            add(two.of[0], two.of[1], k, sums);
        }
    }
    __device__ void add(T upper, T lower, int k, Sums& sums) const {
        NFD_FAST_UNROLL
        for (int group = 0; group < kGroups; ++group) {
            const Four<T> batch = batch_at(k, group);
            NFD_FAST_UNROLL
            for (int j = 0; j < 4; ++j) {
                T* upper_sum = &sums.of[0][group][j];
                T* lower_sum = &sums.of[1][group][j];
                *upper_sum = fused_multiply_add(upper, batch.of[j], *upper_sum);
                *lower_sum = fused_multiply_add(lower, batch.of[j], *lower_sum);
            }
        }
    }

    // The products of all warps, for sum_of().
    __device__ void put_sums(const Sums& sums) const {
        NFD_FAST_UNROLL
        for (int row = 0; row < 2; ++row) {
            NFD_FAST_UNROLL
            for (int group = 0; group < kGroups; ++group) {
                Four<T> four;
                NFD_FAST_UNROLL
                for (int j = 0; j < 4; ++j) four.of[j] = sums.of[row][group][j];
                *reinterpret_cast<Four<T>*>(
                    shared_.sums + (thread_ / 32 * kStrip + lane_row() + row) * Here::packed +
                    group * kGroup + lane_column()) = four;
            }
        }
    }
    __device__ T sum_of(int row, int b) const {
        T sum = 0;
        for (int warp = 0; warp < kWarps; ++warp) {
            sum += shared_.sums[(warp * kStrip + row) * Here::packed + b];
        }
        return sum;
    }

    __device__ void weigh_features(std::int64_t l) const {
        const T* layer = features(l);
        const double* weights = a_.weights + replica_ * s_.batch;
        for (int at = thread_; at < kStrip * Here::packed; at += kThreads) {
            const int b = at / kStrip;
            const std::int64_t i = first_ + at % kStrip;
            shared_.weighted[at] = b < s_.batch && i < s_.width
                                       ? static_cast<T>(-a_.step * weights[b]) *
                                             activate(s_.activation, layer[b * s_.width + i])
                                       : T(0);
        }
    }

    // sum_b G[b] weighted[b]^T: a thread has whole rows of the chunk.
    __device__ void find_step(int count) const {
        constexpr int kRows = (Here::chunk + kThreads - 1) / kThreads;
        T sums[kRows][kStrip] = {};
        for (int b = 0; b < static_cast<int>(s_.batch); b += 4) {
            Four<T> adjoints[kRows];
            NFD_FAST_UNROLL
            for (int row = 0; row < kRows; ++row) {
                // Threads that a small chunk leaves idle look at its last row.
                const int k = at_most(thread_ + row * kThreads, Here::chunk - 1);
                adjoints[row] =
                    *reinterpret_cast<const Four<T>*>(shared_.batch + k * Here::batch_stride + b);
            }
            NFD_FAST_UNROLL
            for (int inner = 0; inner < 4; ++inner) {
                NFD_FAST_UNROLL
                for (int half = 0; half < kStrip; half += 4) {
                    const auto four = *reinterpret_cast<const Four<T>*>(
                        shared_.weighted + (b + inner) * kStrip + half);
                    NFD_FAST_UNROLL
                    for (int row = 0; row < kRows; ++row) {
                        NFD_FAST_UNROLL
                        for (int j = 0; j < 4; ++j) {
                            sums[row][half + j] = fused_multiply_add(
                                adjoints[row].of[inner], four.of[j], sums[row][half + j]);
                        }
                    }
                }
            }
        }
        NFD_FAST_UNROLL
        for (int row = 0; row < kRows; ++row) {
            const int k = thread_ + row * kThreads;
            if (k >= count) continue;
            NFD_FAST_UNROLL
            for (int j = 0; j < kStrip; ++j) shared_.step[k * kStrip + j] = sums[row][j];
        }
    }
    __device__ void take_step(std::int64_t l, std::int64_t start, int count) const {
        // What a replica that has diverged does to itself is nobody's business, but those weights
        // may be the caller's.
        if (a_.bad_step[replica_] != kNoBadStep) return;
        T* matrix = a_.backward_hidden + matrix_at(l);
        T* other = a_.hidden == a_.backward_hidden ? nullptr : a_.hidden + matrix_at(l);
        for (int at = thread_; at < count * kStrip; at += kThreads) {
            const std::int64_t j = first_ + at % kStrip;
            if (j >= s_.width) continue;
            const std::int64_t to = (start + at / kStrip) * s_.width + j;
            matrix[to] = shared_.matrix[at] + shared_.step[at];
            if (other) other[to] += shared_.step[at];
        }
    }

    const Layers<T>& a_;
    const LayerStack& s_;
    Here shared_;
    int thread_;
    std::int64_t replica_, first_;
};

template <class T>
__device__ inline std::int64_t strips_of(const Layers<T>& a) {
    return a.replicas * ((a.stack.width + kStrip - 1) / kStrip);
}

template <class T>
__device__ inline T branch_scale(const LayerStack& s) {
    return static_cast<T>(s.branch_factor / ::sqrt(static_cast<double>(s.width)));
}

template <class T, int kGroups>
__global__ void __launch_bounds__(kThreads, 1) forward_kernel(Layers<T> a) {
    const std::int64_t strips = strips_of(a), first = blockIdx.x;
    const T scale = branch_scale<T>(a.stack);
    const Strip<T, kGroups> own(a, first);
    Barrier barrier(a.arrived);
    for (std::int64_t strip = first; strip < strips; strip += gridDim.x) {
        Strip<T, kGroups>(a, strip).pack_features();
    }
    for (std::int64_t l = 1; l <= a.stack.depth; ++l) {
        barrier.arrive();
        own.load_rows(l, 0);
        barrier.wait();
        for (std::int64_t strip = first; strip < strips; strip += gridDim.x) {
            Strip<T, kGroups>(a, strip).forward(l, scale, strip == first);
        }
    }
}

template <class T, int kGroups>
__global__ void __launch_bounds__(kThreads, 1) backward_kernel(Layers<T> a) {
    const std::int64_t strips = strips_of(a), first = blockIdx.x;
    const T scale = branch_scale<T>(a.stack);
    const Strip<T, kGroups> own(a, first);
    Barrier barrier(a.arrived);
    for (std::int64_t strip = first; strip < strips; strip += gridDim.x) {
        Strip<T, kGroups>(a, strip).pack_adjoints(a.stack.depth);
    }
    for (std::int64_t l = a.stack.depth; l >= 1; --l) {
        barrier.arrive();
        own.load_columns(l, 0);
        barrier.wait();
        for (std::int64_t strip = first; strip < strips; strip += gridDim.x) {
            Strip<T, kGroups>(a, strip).backward(l, scale, strip == first);
        }
    }
}

template <class T, int kGroups>
__global__ void __launch_bounds__(kThreads, 1) update_kernel(Layers<T> a) {
    const std::int64_t strips = strips_of(a), first = blockIdx.x;
    Barrier barrier(a.arrived);
    for (std::int64_t l = a.stack.depth; l >= 1; --l) {
        // Beside those of the layer before, which others may be reading.
        for (std::int64_t strip = first; strip < strips; strip += gridDim.x) {
            Strip<T, kGroups>(a, strip).pack_adjoints(l);
        }
        barrier.arrive();
        barrier.wait();
        for (std::int64_t strip = first; strip < strips; strip += gridDim.x) {
            Strip<T, kGroups>(a, strip).update(l);
        }
    }
}

template <class T>
struct Kernels {
    void (*forward)(Layers<T>);
    void (*backward)(Layers<T>);
    void (*update)(Layers<T>);
    std::size_t forward_bytes, backward_bytes;
    std::int64_t packed;
};
template <class T, int kGroups>
Kernels<T> kernels_of_groups() {
    using Here = Shared<T, kGroups>;
    return {forward_kernel<T, kGroups>, backward_kernel<T, kGroups>, update_kernel<T, kGroups>,
            Here::bytes(false),         Here::bytes(true),           Here::packed};
}
template <class T>
Kernels<T> kernels_for(const LayerStack& s) {
    if (s.batch <= kGroup) return kernels_of_groups<T, 1>();
    return s.batch <= 2 * kGroup ? kernels_of_groups<T, 2>() : kernels_of_groups<T, 4>();
}

std::int64_t strips_of(const LayerStack& s) { return (s.width + kStrip - 1) / kStrip; }

template <class T>
void run(void (*kernel)(Layers<T>), const Layers<T>& layers, int blocks, std::size_t shared_bytes,
         cudaStream_t stream) {
    check(cudaMemsetAsync(layers.arrived, 0, sizeof(unsigned), stream), "clearing memory");
    const std::int64_t strips = layers.replicas * strips_of(layers.stack);
    launch(kernel, dim3(static_cast<unsigned>(std::min<std::int64_t>(blocks, strips))), kThreads,
           shared_bytes, stream, true, layers);
}

}  // namespace

template <class T>
int NarrowLayers<T>::most_replicas(const LayerStack& s) {
    return static_cast<int>(std::max<std::int64_t>(1, kMostStrips / strips_of(s)));
}

template <class T>
void NarrowLayers<T>::lay_out(const LayerStack& s, Arena& arena, int replicas) {
    packed_count_ = 2 * replicas * s.width * kernels_for<T>(s).packed;
    arena.take(packed_, static_cast<double>(packed_count_));
    arena.take(arrived_, 1);
}

template <class T>
void NarrowLayers<T>::prepare(const LayerStack& s, const Wave<T>& wave) {
    const Kernels<T> kernels = kernels_for<T>(s);
    forward_blocks_ = resident_blocks(kernels.forward, kThreads, kernels.forward_bytes);
    backward_blocks_ = resident_blocks(kernels.backward, kThreads, kernels.backward_bytes);
    update_blocks_ = resident_blocks(kernels.update, kThreads, kernels.backward_bytes);
    check(cudaMemsetAsync(packed_, 0, static_cast<std::size_t>(packed_count_) * sizeof(T),
                          wave.stream),
          "clearing memory");
}

template <class T>
void NarrowLayers<T>::forward(const LayerStack& s, const Wave<T>& wave, const T* hidden) const {
    Layers<T> layers{};
    layers.stack = s;
    layers.replicas = wave.count;
    layers.hidden = const_cast<T*>(hidden);
    layers.features = wave.features;
    layers.bad_step = wave.bad_step;
    layers.packed = packed_;
    layers.arrived = arrived_;
    const Kernels<T> kernels = kernels_for<T>(s);
    run(kernels.forward, layers, forward_blocks_, kernels.forward_bytes, wave.stream);
}

template <class T>
void NarrowLayers<T>::backward(const LayerStack& s, const Wave<T>& wave, T* hidden,
                               T* backward_hidden, bool all_adjoints, bool update,
                               double step) const {
    const Layers<T> layers{s,
                           wave.count,
                           hidden,
                           backward_hidden,
                           wave.features,
                           {wave.adjoints, all_adjoints, wave.sources},
                           all_adjoints ? s.depth + 1 : 2,
                           wave.weights,
                           wave.bad_step,
                           update,
                           step / std::sqrt(static_cast<double>(s.width)),
                           packed_,
                           arrived_};
    const Kernels<T> kernels = kernels_for<T>(s);
    run(kernels.backward, layers, backward_blocks_, kernels.backward_bytes, wave.stream);
}

template <class T>
void NarrowLayers<T>::update(const LayerStack& s, const Wave<T>& wave, T* hidden,
                             double step) const {
    Layers<T> layers{};
    layers.stack = s;
    layers.replicas = wave.count;
    layers.hidden = layers.backward_hidden = hidden;
    layers.features = wave.features;
    layers.adjoints = {wave.adjoints, true};
    layers.stored_adjoints = s.depth + 1;
    layers.weights = wave.weights;
    layers.bad_step = wave.bad_step;
    layers.step = step / std::sqrt(static_cast<double>(s.width));
    layers.packed = packed_;
    layers.arrived = arrived_;
    const Kernels<T> kernels = kernels_for<T>(s);
    run(kernels.update, layers, update_blocks_, kernels.backward_bytes, wave.stream);
}

template class NarrowLayers<float>;
template class NarrowLayers<double>;

}  // namespace nfd_fast::cuda
