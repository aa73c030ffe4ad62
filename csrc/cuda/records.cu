#include <algorithm>

#include "cuda/activate.hpp"
#include "cuda/items.hpp"
#include "cuda/records.hpp"
#include "nfd_fast/elementary.hpp"

namespace nfd_fast::cuda {
namespace {

// The Gram matrices of the first `count` layers (B, n) of each replica; of phi of them with
// `activation` >= 0.
template <class T>
struct GramTask {
    const T* layers;
    std::int64_t stride;  // from one replica to the next
    std::int64_t count;
    int activation;
    std::int64_t chunks;
    double* sums;  // (replicas, places, chunks, B, B), where there is more than one chunk
    double* out;   // (replicas, places, B, B)
    std::int64_t places;
};

template <class T>
__device__ inline double gram_entry(const GramTask<T>& task, T x) {
    return static_cast<double>(task.activation < 0 ? x : activate(task.activation, x));
}

// Neurons of a chunk: whole steps of the tiles below.
constexpr std::int64_t kGramStep = 32;
__device__ inline std::int64_t gram_chunk(std::int64_t width, std::int64_t chunks) {
    return (width + chunks * kGramStep - 1) / (chunks * kGramStep) * kGramStep;
}

// Where a block puts its sums, and what makes means of them.
template <class T>
__device__ inline double* gram_place(const GramTask<T>& task, std::int64_t batch,
                                     std::int64_t replica, std::int64_t layer, std::int64_t chunk) {
    const std::int64_t matrix = replica * task.places + layer;
    return task.chunks == 1 ? task.out + matrix * batch * batch
                            : task.sums + (matrix * task.chunks + chunk) * batch * batch;
}

// Batches of at most kMost: every thread has all pairs of its neurons.
template <class T, int kMost>
__global__ void __launch_bounds__(kThreads)
    gram_thin(GramTask<T> task, LayerStack s, const int* bad_step) {
    const std::int64_t replica = blockIdx.y;
    if (bad_step[replica] != kNoBadStep) return;
    const std::int64_t layer = blockIdx.x / task.chunks, chunk = blockIdx.x % task.chunks;
    const T* x = task.layers + replica * task.stride + layer * s.layer_size();
    const std::int64_t length = gram_chunk(s.width, task.chunks);
    const std::int64_t end = at_most((chunk + 1) * length, s.width);
    double sums[kMost][kMost] = {};
    for (std::int64_t i = chunk * length + threadIdx.x; i < end; i += kThreads) {
        double column[kMost];
        NFD_FAST_UNROLL
        for (int b = 0; b < kMost; ++b) {
            column[b] = b < s.batch ? gram_entry(task, x[b * s.width + i]) : 0.0;
            NFD_FAST_UNROLL
            for (int a = 0; a <= b; ++a) {
                sums[b][a] = fused_multiply_add(column[b], column[a], sums[b][a]);
            }
        }
    }
    double* out = gram_place(task, s.batch, replica, layer, chunk);
    const double scale = task.chunks == 1 ? 1.0 / static_cast<double>(s.width) : 1.0;
    NFD_FAST_UNROLL
    for (int b = 0; b < kMost; ++b) {
        NFD_FAST_UNROLL
        for (int a = 0; a <= b; ++a) {
            const double sum = block_sum(sums[b][a], shared_memory<double>());
            if (threadIdx.x == 0 && b < s.batch) {
                out[b * s.batch + a] = out[a * s.batch + b] = scale * sum;
            }
        }
    }
}

// Any batch: a block has 32 x 32 pairs, on or below the diagonal.
constexpr int kGramTile = 32;
constexpr int kGramSide = 16;  // threads along each side of it
constexpr int kGramStride = kGramTile + 1;

template <class T>
__global__ void __launch_bounds__(kThreads)
    gram_tile(GramTask<T> task, LayerStack s, const int* bad_step, std::int64_t pairs) {
    const std::int64_t replica = blockIdx.y;
    if (bad_step[replica] != kNoBadStep) return;
    std::int64_t pair = blockIdx.x % pairs, tile_row = 0;
    while (pair > tile_row) pair -= ++tile_row;
    const std::int64_t first_row = tile_row * kGramTile, first_column = pair * kGramTile;
    const std::int64_t chunk = blockIdx.x / pairs % task.chunks;
    const std::int64_t layer = blockIdx.x / pairs / task.chunks;
    const T* x = task.layers + replica * task.stride + layer * s.layer_size();
    const std::int64_t length = gram_chunk(s.width, task.chunks);
    const std::int64_t end = at_most((chunk + 1) * length, s.width);
    double* rows = shared_memory<double>();
    double* columns = rows + kGramStep * kGramStride;
    const int thread = static_cast<int>(threadIdx.x);
    const int tx = thread % kGramSide, ty = thread / kGramSide;
    const auto load = [&](std::int64_t first_sample, std::int64_t first, double* to) {
        for (int at = thread; at < kGramStep * kGramTile; at += kThreads) {
            const std::int64_t i = first + at % kGramStep, b = first_sample + at / kGramStep;
            to[at % kGramStep * kGramStride + at / kGramStep] =
                i < end && b < s.batch ? gram_entry(task, x[b * s.width + i]) : 0.0;
        }
    };
    double sums[2][2] = {};
    for (std::int64_t first = chunk * length; first < end; first += kGramStep) {
        load(first_row, first, rows);
        load(first_column, first, columns);
        __syncthreads();
        for (int k = 0; k < kGramStep; ++k) {
            NFD_FAST_UNROLL
            for (int i = 0; i < 2; ++i) {
                NFD_FAST_UNROLL
                for (int j = 0; j < 2; ++j) {
                    sums[i][j] = fused_multiply_add(rows[k * kGramStride + ty + kGramSide * i],
                                                    columns[k * kGramStride + tx + kGramSide * j],
                                                    sums[i][j]);
                }
            }
        }
        __syncthreads();
    }
    double* out = gram_place(task, s.batch, replica, layer, chunk);
    const double scale = task.chunks == 1 ? 1.0 / static_cast<double>(s.width) : 1.0;
    NFD_FAST_UNROLL
    for (int i = 0; i < 2; ++i) {
        NFD_FAST_UNROLL
        for (int j = 0; j < 2; ++j) {
            const std::int64_t b = first_row + ty + kGramSide * i,
                               a = first_column + tx + kGramSide * j;
            if (b >= s.batch || a > b) continue;
            out[b * s.batch + a] = out[a * s.batch + b] = scale * sums[i][j];
        }
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    sum_grams(GramTask<T> task, LayerStack s, const int* bad_step) {
    const std::int64_t replica = blockIdx.y, at = item();
    const std::int64_t square = s.batch * s.batch;
    if (at >= task.count * square || bad_step[replica] != kNoBadStep) return;
    const double* sums = gram_place(task, s.batch, replica, at / square, 0) + at % square;
    double sum = 0;
    for (std::int64_t chunk = 0; chunk < task.chunks; ++chunk) sum += sums[chunk * square];
    task.out[replica * task.places * square + at] = sum / static_cast<double>(s.width);
}

template <class T>
void record_grams(const LayerStack& s, const GramTask<T>& task, const int* bad_step, int replicas,
                  cudaStream_t stream) {
    const std::int64_t blocks = task.count * task.chunks;
    if (s.batch <= 4) {
        launch(gram_thin<T, 4>, grid(blocks, replicas, 1), kThreads, kWarpSums, stream, false, task,
               s, bad_step);
    } else if (s.batch <= 8) {
        launch(gram_thin<T, 8>, grid(blocks, replicas, 1), kThreads, kWarpSums, stream, false, task,
               s, bad_step);
    } else {
        const std::int64_t tiles = (s.batch + kGramTile - 1) / kGramTile;
        const std::int64_t pairs = tiles * (tiles + 1) / 2;
        launch(gram_tile<T>, grid(blocks * pairs, replicas, 1), kThreads,
               2 * sizeof(double) * kGramStep * kGramStride, stream, false, task, s, bad_step,
               pairs);
    }
    if (task.chunks == 1) return;
    launch(sum_grams<T>, grid(task.count * s.batch * s.batch, replicas), kThreads, 0, stream, false,
           task, s, bad_step);
}

// Of one layer and replica per block.
template <class T>
__global__ void __launch_bounds__(kThreads)
    measure_movement(Network<T> net, LayerStack s, double* movement) {
    const std::int64_t layers = s.depth + 1, at = blockIdx.y * layers + blockIdx.x;
    if (net.bad_step[blockIdx.y] != kNoBadStep) return;
    const T* now = net.features + at * s.layer_size();
    const T* before = net.first_features + at * s.layer_size();
    double sum = 0;
    for (std::int64_t i = threadIdx.x; i < s.layer_size(); i += kThreads) {
        const double difference = static_cast<double>(now[i]) - static_cast<double>(before[i]);
        sum = fused_multiply_add(difference, difference, sum);
    }
    sum = block_sum(sum, shared_memory<double>());
    if (threadIdx.x == 0) movement[at] = sum / static_cast<double>(s.layer_size());
}

}  // namespace

// Runs of neurons that the Gram matrix of one layer is summed over in parallel: many where neither
// the batch nor the depth keeps a device busy.
constexpr std::int64_t kGramChunk = 4096;
std::int64_t gram_chunks(const LayerStack& s) {
    const std::int64_t by_batch = std::max<std::int64_t>(1, 16384 / (s.batch * s.batch));
    const std::int64_t by_depth = std::max<std::int64_t>(1, 2048 / (s.depth + 1));
    return std::min({(s.width + kGramChunk - 1) / kGramChunk, by_batch, by_depth});
}

template <class T>
void record_features(const Problem<T>& p, const Network<T>& net, const RecordedRow& row,
                     int replicas, std::int64_t k, cudaStream_t stream) {
    const LayerStack& s = p.stack;
    const std::int64_t layers = s.depth + 1, stride = layers * s.layer_size();
    const auto record = [&](std::int64_t count, int activation, double* out) {
        if (!out) return;
        record_grams(s,
                     GramTask<T>{net.features, stride, count, activation, gram_chunks(s),
                                 net.gram_sums, out, count},
                     net.bad_step, replicas, stream);
    };
    record(layers, -1, row.feature_kernels);
    record(s.depth, s.activation, row.activation_kernels);
    if (!row.feature_movement) return;
    if (k == 0) {
        check(cudaMemcpyAsync(net.first_features, net.features,
                              static_cast<std::size_t>(replicas * stride) * sizeof(T),
                              cudaMemcpyDeviceToDevice, stream),
              "a copy on the device");
    }
    if (k == p.updates) {
        launch(measure_movement<T>, grid(layers, replicas, 1), kThreads, kWarpSums, stream, false,
               net, s, row.feature_movement);
    }
}

template <class T>
void record_adjoints(const Problem<T>& p, const Network<T>& net, const RecordedRow& row,
                     bool only_first, int replicas, cudaStream_t stream) {
    if (!row.adjoint_kernels) return;
    const LayerStack& s = p.stack;
    const std::int64_t layers = s.depth + 1;
    const std::int64_t stride = stored_adjoints(p) * s.layer_size();
    const GramTask<T> task{net.adjoints,   stride,        only_first ? 1 : layers, -1,
                           gram_chunks(s), net.gram_sums, row.adjoint_kernels,     layers};
    record_grams(s, task, net.bad_step, replicas, stream);
}

#define NFD_FAST_INSTANTIATE(T)                                                                \
    template void record_features<T>(const Problem<T>&, const Network<T>&, const RecordedRow&, \
                                     int, std::int64_t, cudaStream_t);                         \
    template void record_adjoints<T>(const Problem<T>&, const Network<T>&, const RecordedRow&, \
                                     bool, int, cudaStream_t);
NFD_FAST_INSTANTIATE(float)
NFD_FAST_INSTANTIATE(double)
#undef NFD_FAST_INSTANTIATE

}  // namespace nfd_fast::cuda
