#include <cmath>

#include "cuda/ends.hpp"
#include "cuda/items.hpp"
#include "cuda/tile_product.hpp"
#include "nfd_fast/elementary.hpp"
#include "nfd_fast/losses.hpp"

namespace nfd_fast::cuda {
namespace {

// Neurons that one block sums up; the number of blocks is part of the order of the sums.
constexpr std::int64_t kReadoutChunk = 8192;

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

}  // namespace

std::int64_t readout_chunks(std::int64_t width) {
    return (width + kReadoutChunk - 1) / kReadoutChunk;
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

#define NFD_FAST_INSTANTIATE(T)                                                                    \
    template void start<T>(const Network<T>&, int, cudaStream_t);                                  \
    template void embed<T>(const Problem<T>&, const Network<T>&, int, std::int64_t, cudaStream_t); \
    template void read_out<T>(const Problem<T>&, const Network<T>&, int, std::int64_t,             \
                              cudaStream_t);                                                       \
    template void seed_adjoints<T>(const Problem<T>&, const Network<T>&, int, cudaStream_t);       \
    template void update_ends<T>(const Problem<T>&, const Network<T>&, int, std::int64_t,          \
                                 cudaStream_t);
NFD_FAST_INSTANTIATE(float)
NFD_FAST_INSTANTIATE(double)
#undef NFD_FAST_INSTANTIATE

}  // namespace nfd_fast::cuda
