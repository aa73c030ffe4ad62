#include <algorithm>
#include <cmath>

#include "cuda/activate.hpp"
#include "cuda/passes.hpp"
#include "cuda/reduction.hpp"
#include "nfd_fast/losses.hpp"

namespace nfd_fast::cuda {
namespace {

constexpr int kThreads = 256;

// Neurons that one block sums up; the number of blocks is part of the order of the sums.
constexpr std::int64_t kReadoutChunk = 8192;
std::int64_t readout_chunks(std::int64_t width) {
    return (width + kReadoutChunk - 1) / kReadoutChunk;
}

// Runs of neurons that the Gram matrix of one layer is summed over in parallel: many where neither
// the batch nor the depth keeps a device busy.
constexpr std::int64_t kGramChunk = 4096;
std::int64_t gram_chunks(const LayerStack& s) {
    const std::int64_t by_batch = std::max<std::int64_t>(1, 16384 / (s.batch * s.batch));
    const std::int64_t by_depth = std::max<std::int64_t>(1, 2048 / (s.depth + 1));
    return std::min({(s.width + kGramChunk - 1) / kGramChunk, by_batch, by_depth});
}

// One thread for each of `items`, and the same again for each replica.
dim3 grid(std::int64_t items, int replicas, std::int64_t per_block = kThreads) {
    return dim3(static_cast<unsigned>((items + per_block - 1) / per_block),
                static_cast<unsigned>(replicas));
}

__device__ inline std::int64_t item() {
    return static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

// --- Small products, tile by tile ----------------------------------------------------------------

// Four neighbours that move together.
template <class T>
struct alignas(16) Quad {
    T of[4];
};

constexpr int kSide = 16;      // threads along each side of a tile
constexpr int kTileRows = 64;  // four per thread
constexpr int kTileInner = 16;
constexpr int kTilePad = 4;

template <class T>
constexpr std::size_t tile_bytes(int columns) {
    return sizeof(T) * kTileInner * static_cast<std::size_t>(kTileRows + columns + 2 * kTilePad);
}

// One block's tile of a product: store(row, column, sum_k left(k, row) right(k, column)) for 64
// rows and 16 kEach columns. Neighbouring threads load along the inner index where
// `kAlongInner`, else along rows and columns.
template <int kEach, bool kAlongInner, class T, class Left, class Right, class Store>
__device__ void tile_product(std::int64_t inner, T* shared, Left left, Right right, Store store) {
    constexpr int kColumns = kSide * kEach;
    constexpr int kLeftStride = kTileRows + kTilePad, kRightStride = kColumns + kTilePad;
    T* lefts = shared;
    T* rights = shared + kTileInner * kLeftStride;
    const int thread = static_cast<int>(threadIdx.x);
    const int tx = thread % kSide, ty = thread / kSide;
    const auto load = [&](auto from, int count, T* to, int stride, std::int64_t first) {
        for (int at = thread; at < kTileInner * count; at += kThreads) {
            const int k = kAlongInner ? at % kTileInner : at / count;
            const int other = kAlongInner ? at / kTileInner : at % count;
            to[k * stride + other] = first + k < inner ? from(first + k, other) : T(0);
        }
    };
    T sums[4][kEach] = {};
    for (std::int64_t first = 0; first < inner; first += kTileInner) {
        load(left, kTileRows, lefts, kLeftStride, first);
        load(right, kColumns, rights, kRightStride, first);
        __syncthreads();
        for (int k = 0; k < kTileInner; ++k) {
            const auto rows = *reinterpret_cast<const Quad<T>*>(lefts + k * kLeftStride + 4 * tx);
            T columns[kEach];
            NFD_FAST_UNROLL
            for (int j = 0; j < kEach; ++j) columns[j] = rights[k * kRightStride + ty + kSide * j];
            NFD_FAST_UNROLL
            for (int i = 0; i < 4; ++i) {
                NFD_FAST_UNROLL
                for (int j = 0; j < kEach; ++j) {
                    sums[i][j] = fused_multiply_add(rows.of[i], columns[j], sums[i][j]);
                }
            }
        }
        __syncthreads();
    }
    NFD_FAST_UNROLL
    for (int j = 0; j < kEach; ++j) {
        NFD_FAST_UNROLL
        for (int i = 0; i < 4; ++i) store(4 * tx + i, ty + kSide * j, sums[i][j]);
    }
}

// --- Forward -------------------------------------------------------------------------------------

template <class T, int kEach>
__global__ void __launch_bounds__(kThreads) embed_tile(Network<T> net, const std::int64_t* batch,
                                                       LayerStack s, std::int64_t inputs, T scale) {
    const std::int64_t replica = blockIdx.y;
    if (net.bad_step[replica] != kNoBadStep) return;
    constexpr int kColumns = kSide * kEach;
    const std::int64_t across = (s.batch + kColumns - 1) / kColumns;
    const std::int64_t first_row = blockIdx.x / across * kTileRows;
    const std::int64_t first_column = blockIdx.x % across * kColumns;
    const T* input = net.input + replica * s.width * inputs;
    T* out = net.features + replica * (s.depth + 1) * s.layer_size();
    tile_product<kEach, true>(
        inputs, shared_memory<T>(),
        [&](std::int64_t k, int row) {
            const std::int64_t i = first_row + row;
            return i < s.width ? input[i * inputs + k] : T(0);
        },
        [&](std::int64_t k, int column) {
            const std::int64_t b = first_column + column;
            return b < s.batch ? net.x[batch[b] * inputs + k] : T(0);
        },
        [&](int row, int column, T sum) {
            const std::int64_t i = first_row + row, b = first_column + column;
            if (i >= s.width || b >= s.batch) return;
            const T value = scale * sum;
            out[b * s.width + i] = value;
            note_unless_finite(value, 0, net.bad_step + replica);
        });
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    sum_outputs(Network<T> net, LayerStack s, std::int64_t outputs, std::int64_t chunks) {
    const std::int64_t replica = blockIdx.y;
    if (net.bad_step[replica] != kNoBadStep) return;
    const std::int64_t chunk = blockIdx.x % chunks, output = blockIdx.x / chunks;
    const std::int64_t b = output / outputs, c = output % outputs;
    const T* last = net.features + ((replica * (s.depth + 1) + s.depth) * s.batch + b) * s.width;
    const T* readout = net.readout + (replica * outputs + c) * s.width;
    const std::int64_t end = at_most((chunk + 1) * kReadoutChunk, s.width);
    double sum = 0;
    for (std::int64_t i = chunk * kReadoutChunk + threadIdx.x; i < end; i += kThreads) {
        sum =
            fused_multiply_add(static_cast<double>(readout[i]), static_cast<double>(last[i]), sum);
    }
    sum = block_sum(sum, shared_memory<double>());
    if (threadIdx.x == 0) {
        net.output_sums[(replica * s.batch * outputs + output) * chunks + chunk] = sum;
    }
}

// Of one replica per block.
template <class T>
__global__ void __launch_bounds__(kThreads)
    judge_forward(Network<T> net, const std::int64_t* batch, LayerStack s, std::int64_t outputs,
                  std::int64_t chunks, Loss loss, std::int64_t update) {
    const std::int64_t replica = blockIdx.x;
    Divergence& divergence = net.divergences[replica];
    if (net.bad_step[replica] != kNoBadStep) {
        if (threadIdx.x == 0 && divergence.quantity == Quantity::none) {
            divergence = {update, net.bad_step[replica], Quantity::features};
        }
        return;
    }
    double sum = 0;
    for (std::int64_t b = threadIdx.x; b < s.batch; b += kThreads) {
        const std::int64_t sample = replica * s.batch + b;
        double* f = net.outputs + sample * outputs;
        for (std::int64_t c = 0; c < outputs; ++c) {
            const double* sums = net.output_sums + (sample * outputs + c) * chunks;
            double output = 0;
            for (std::int64_t chunk = 0; chunk < chunks; ++chunk) output += sums[chunk];
            f[c] = output / static_cast<double>(s.width);
        }
        double* chi = net.chi + sample * outputs;
        sum += loss == Loss::mse ? mse(f, net.targets + batch[b] * outputs, outputs, chi)
                                 : cross_entropy(f, net.labels[batch[b]], outputs, chi);
        net.sample_weights[sample] = outputs == 1 ? chi[0] : 1.0;
    }
    sum = block_sum(sum, shared_memory<double>());
    if (threadIdx.x != 0) return;
    const double mean = sum * (1.0 / static_cast<double>(s.batch));
    net.losses[replica] = mean;
    if (!(mean - mean == 0)) {
        divergence = {update, s.depth + 1, Quantity::outputs};
        net.bad_step[replica] = 0;
    }
}

// --- Backward ------------------------------------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(kThreads)
    seed_layer(Network<T> net, LayerStack s, std::int64_t outputs, AdjointStore<T> adjoints,
               std::int64_t stored) {
    const std::int64_t replica = blockIdx.y, at = item();
    if (at >= s.layer_size() || net.bad_step[replica] != kNoBadStep) return;
    const std::int64_t b = at / s.width, i = at % s.width;
    const T* readout = net.readout + replica * outputs * s.width + i;
    const double* chi = net.chi + (replica * s.batch + b) * outputs;
    T sum = 0;
    for (std::int64_t c = 0; c < outputs; ++c) {
        const T seed = outputs == 1 ? T(1) : static_cast<T>(chi[c]);
        sum = c == 0 ? seed * readout[0] : fused_multiply_add(seed, readout[c * s.width], sum);
    }
    adjoints.layer(s, s.depth)[replica * stored * s.layer_size() + at] = sum;
    note_unless_finite(sum, 0, net.bad_step + replica);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    update_input(Network<T> net, const std::int64_t* batch, LayerStack s, std::int64_t inputs,
                 AdjointStore<T> adjoints, std::int64_t stored, double step) {
    const std::int64_t replica = blockIdx.y;
    if (net.bad_step[replica] != kNoBadStep) return;
    constexpr int kColumns = 4 * kSide;
    const std::int64_t across = (s.width + kColumns - 1) / kColumns;
    const std::int64_t first_row = blockIdx.x / across * kTileRows;
    const std::int64_t first_column = blockIdx.x % across * kColumns;
    const T* first_adjoints = adjoints.layer(s, 0) + replica * stored * s.layer_size();
    const double* weights = net.sample_weights + replica * s.batch;
    T* input = net.input + replica * s.width * inputs;
    tile_product<4, false>(
        s.batch, shared_memory<T>(),
        [&](std::int64_t b, int row) {
            const std::int64_t j = first_row + row;
            return j < inputs ? static_cast<T>(-step * weights[b]) * net.x[batch[b] * inputs + j]
                              : T(0);
        },
        [&](std::int64_t b, int column) {
            const std::int64_t i = first_column + column;
            return i < s.width ? first_adjoints[b * s.width + i] : T(0);
        },
        [&](int row, int column, T sum) {
            const std::int64_t j = first_row + row, i = first_column + column;
            if (j < inputs && i < s.width) input[i * inputs + j] += sum;
        });
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    update_readout(Network<T> net, LayerStack s, std::int64_t outputs, double rate) {
    const std::int64_t replica = blockIdx.y, at = item();
    if (at >= outputs * s.width || net.bad_step[replica] != kNoBadStep) return;
    const std::int64_t c = at / s.width, i = at % s.width;
    const T* last = net.features + (replica * (s.depth + 1) + s.depth) * s.layer_size() + i;
    const double* chi = net.chi + replica * s.batch * outputs + c;
    T& readout = net.readout[replica * outputs * s.width + at];
    T sum = readout;
    for (std::int64_t b = 0; b < s.batch; ++b) {
        sum =
            fused_multiply_add(static_cast<T>(-(rate * chi[b * outputs])), last[b * s.width], sum);
    }
    readout = sum;
}

template <class T>
__global__ void judge_backward(Network<T> net, int replicas, std::int64_t depth,
                               std::int64_t update) {
    const std::int64_t replica = item();
    if (replica >= replicas) return;
    Divergence& divergence = net.divergences[replica];
    const int bad = net.bad_step[replica];
    if (bad != kNoBadStep && divergence.quantity == Quantity::none) {
        divergence = {update, depth - bad, Quantity::adjoints};
    }
}

template <class T>
__global__ void revive(Network<T> net, int replicas) {
    const std::int64_t replica = item();
    if (replica >= replicas) return;
    net.bad_step[replica] = kNoBadStep;
    net.divergences[replica] = {0, 0, Quantity::none};
}

// --- Records -------------------------------------------------------------------------------------

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
    const int tx = thread % kSide, ty = thread / kSide;
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
                    sums[i][j] =
                        fused_multiply_add(rows[k * kGramStride + ty + kSide * i],
                                           columns[k * kGramStride + tx + kSide * j], sums[i][j]);
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
            const std::int64_t b = first_row + ty + kSide * i, a = first_column + tx + kSide * j;
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
    const std::size_t warps = sizeof(double) * kThreads / kWarp;
    if (s.batch <= 4) {
        launch(gram_thin<T, 4>, grid(blocks, replicas, 1), kThreads, warps, stream, false, task, s,
               bad_step);
    } else if (s.batch <= 8) {
        launch(gram_thin<T, 8>, grid(blocks, replicas, 1), kThreads, warps, stream, false, task, s,
               bad_step);
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

template <class T>
AdjointStore<T> adjoint_store(const Problem<T>& p, const Network<T>& net) {
    return {net.adjoints, p.keep_adjoints};
}
template <class T>
std::int64_t stored_adjoints(const Problem<T>& p) {
    return p.keep_adjoints ? p.stack.depth + 1 : 2;
}

constexpr std::size_t kWarpSums = sizeof(double) * kThreads / kWarp;

}  // namespace

template <class T>
void lay_out(const Problem<T>& p, Arena& arena, int replicas, Network<T>& net) {
    const LayerStack& s = p.stack;
    const double count = replicas, n = static_cast<double>(s.width);
    const double layers = static_cast<double>(s.depth + 1);
    const double batch = static_cast<double>(s.batch), outputs = static_cast<double>(p.outputs);
    const double layer = batch * n;
    arena.take(net.seeds, count);
    arena.take(net.input, count * n * static_cast<double>(p.inputs));
    arena.take(net.readout, count * outputs * n);
    arena.take(net.features, count * layers * layer);
    arena.take(net.first_features, p.keep_first_features ? count * layers * layer : 0);
    arena.take(net.adjoints, count * static_cast<double>(stored_adjoints(p)) * layer);
    arena.take(net.output_sums,
               count * batch * outputs * static_cast<double>(readout_chunks(s.width)));
    arena.take(net.chi, count * batch * outputs);
    arena.take(net.sample_weights, count * batch);
    const bool grams =
        p.records.feature_kernels || p.records.activation_kernels || p.records.adjoint_kernels;
    const double chunks = static_cast<double>(gram_chunks(s));
    arena.take(net.gram_sums, grams && chunks > 1 ? count * layers * chunks * batch * batch : 0);
    arena.take(net.bad_step, count);
}

template <class T>
void start(const Network<T>& net, int replicas, cudaStream_t stream) {
    launch(revive<T>, grid(replicas, 1), kThreads, 0, stream, false, net, replicas);
}

template <class T>
void embed(const Problem<T>& p, const Network<T>& net, int replicas, std::int64_t k,
           cudaStream_t stream) {
    const LayerStack& s = p.stack;
    const T scale = static_cast<T>(1 / std::sqrt(static_cast<double>(p.inputs)));
    const std::int64_t* batch = net.batches + k * s.batch;
    const std::int64_t down = (s.width + kTileRows - 1) / kTileRows;
    const std::int64_t across = (s.batch + 4 * kSide - 1) / (4 * kSide);
    // Small tiles where large ones would leave multiprocessors idle.
    constexpr std::int64_t kMany = 1024;
    if (down * across * replicas < kMany) {
        const std::int64_t narrow = (s.batch + kSide - 1) / kSide;
        launch(embed_tile<T, 1>, grid(down * narrow, replicas, 1), kThreads, tile_bytes<T>(kSide),
               stream, false, net, batch, s, p.inputs, scale);
    } else {
        launch(embed_tile<T, 4>, grid(down * across, replicas, 1), kThreads,
               tile_bytes<T>(4 * kSide), stream, false, net, batch, s, p.inputs, scale);
    }
}

template <class T>
void read_out(const Problem<T>& p, const Network<T>& net, int replicas, std::int64_t k,
              cudaStream_t stream) {
    const LayerStack& s = p.stack;
    const std::int64_t chunks = readout_chunks(s.width);
    launch(sum_outputs<T>, grid(s.batch * p.outputs * chunks, replicas, 1), kThreads, kWarpSums,
           stream, false, net, s, p.outputs, chunks);
    launch(judge_forward<T>, dim3(static_cast<unsigned>(replicas)), kThreads, kWarpSums, stream,
           false, net, net.batches + k * s.batch, s, p.outputs, chunks, p.loss, k);
}

template <class T>
void seed_adjoints(const Problem<T>& p, const Network<T>& net, int replicas, cudaStream_t stream) {
    launch(seed_layer<T>, grid(p.stack.layer_size(), replicas), kThreads, 0, stream, false, net,
           p.stack, p.outputs, adjoint_store(p, net), stored_adjoints(p));
}

template <class T>
void update_ends(const Problem<T>& p, const Network<T>& net, int replicas, std::int64_t k,
                 cudaStream_t stream) {
    const LayerStack& s = p.stack;
    const double rate = p.learning_rate * (1.0 / static_cast<double>(s.batch));
    if (p.train_input) {
        const std::int64_t down = (p.inputs + kTileRows - 1) / kTileRows;
        const std::int64_t across = (s.width + 4 * kSide - 1) / (4 * kSide);
        launch(update_input<T>, grid(down * across, replicas, 1), kThreads,
               tile_bytes<T>(4 * kSide), stream, false, net, net.batches + k * s.batch, s, p.inputs,
               adjoint_store(p, net), stored_adjoints(p),
               rate / std::sqrt(static_cast<double>(p.inputs)));
    }
    if (p.train_readout) {
        launch(update_readout<T>, grid(p.outputs * s.width, replicas), kThreads, 0, stream, false,
               net, s, p.outputs, rate);
    }
    launch(judge_backward<T>, grid(replicas, 1), kThreads, 0, stream, false, net, replicas, s.depth,
           k);
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

#define NFD_FAST_INSTANTIATE(T)                                                                    \
    template void lay_out<T>(const Problem<T>&, Arena&, int, Network<T>&);                         \
    template void start<T>(const Network<T>&, int, cudaStream_t);                                  \
    template void embed<T>(const Problem<T>&, const Network<T>&, int, std::int64_t, cudaStream_t); \
    template void read_out<T>(const Problem<T>&, const Network<T>&, int, std::int64_t,             \
                              cudaStream_t);                                                       \
    template void seed_adjoints<T>(const Problem<T>&, const Network<T>&, int, cudaStream_t);       \
    template void update_ends<T>(const Problem<T>&, const Network<T>&, int, std::int64_t,          \
                                 cudaStream_t);                                                    \
    template void record_features<T>(const Problem<T>&, const Network<T>&, const RecordedRow&,     \
                                     int, std::int64_t, cudaStream_t);                             \
    template void record_adjoints<T>(const Problem<T>&, const Network<T>&, const RecordedRow&,     \
                                     bool, int, cudaStream_t);
NFD_FAST_INSTANTIATE(float)
NFD_FAST_INSTANTIATE(double)
#undef NFD_FAST_INSTANTIATE

}  // namespace nfd_fast::cuda
