// The vector kernels. This file is compiled once per instruction set, each time with its own
// NFD_FAST_TARGET (see CMakeLists.txt). It must not instantiate anything with external linkage
// outside that namespace, standard-library templates included: the linker would merge such code
// across instruction sets and an old processor could meet AVX-512.

#include "cpu/kernels.hpp"

#include <cmath>
#include <cstring>

#include "cpu/block_products.hpp"
#include "cpu/lanes.hpp"
#include "cpu/thin_products.hpp"
#include "nfd_fast/activations.hpp"
#include "nfd_fast/normal.hpp"

#define NFD_FAST_STRING_(x) #x
#define NFD_FAST_STRING(x) NFD_FAST_STRING_(x)

namespace nfd_fast {
inline namespace NFD_FAST_TARGET {
namespace {

// Blocks of four words per batch of noise: enough to fill the pipelines, small enough for L1.
constexpr std::int64_t kBlocks = 256;

struct Words {
    alignas(64) std::uint32_t word[4][kBlocks];
};

// The words of `blocks` <= kBlocks counters whose c0 (along neurons) or c2 (along columns) runs
// from the given start. Whole registers are computed, so lanes past `blocks` hold spare words.
template <bool along_neurons>
void random_words(NoiseAddress address, std::uint32_t c0, std::uint32_t c2, std::int64_t blocks,
                  Words& words) {
    constexpr int chains = 4;
    constexpr std::int64_t step = chains * kLanes;
    static_assert(kBlocks % step == 0, "whole registers only");
    // Counted on in registers: lanes written one by one and then read as one register would keep
    // the loop waiting for the store buffer half of its time.
    Lanes run = lane_indices();
    for (std::int64_t j = 0; j < blocks; j += step) {
        PhiloxCounter<Lanes> counters[chains];
        for (int chain = 0; chain < chains; ++chain, run += kLanes) {
            counters[chain] = {along_neurons ? run + c0 : Lanes{} + c0, Lanes{} + address.c1,
                               along_neurons ? Lanes{} + c2 : run + c2, Lanes{}};
        }
        philox4x32(counters, address.key0, address.key1);
        for (int chain = 0; chain < chains; ++chain) {
            const std::int64_t at = j + chain * kLanes;
            store_low_words(counters[chain].c0, &words.word[0][at]);
            store_low_words(counters[chain].c1, &words.word[1][at]);
            store_low_words(counters[chain].c2, &words.word[2][at]);
            store_low_words(counters[chain].c3, &words.word[3][at]);
        }
    }
}

template <class T>
struct Normals {
    alignas(64) T z[4][kBlocks];
};

template <class T>
void normals_of_words(const Words& words, std::int64_t blocks, Normals<T>& normals) {
    for (int pair = 0; pair < 4; pair += 2) {
        const std::uint32_t* first = words.word[pair];
        const std::uint32_t* second = words.word[pair + 1];
        T* cosine = normals.z[pair];
        T* sine = normals.z[pair + 1];
#pragma omp simd
        for (std::int64_t j = 0; j < blocks; ++j) {
            const NormalPair<T> normal = box_muller<T>(first[j], second[j]);
            cosine[j] = normal.first;
            sine[j] = normal.second;
        }
    }
}

// Copies the first `count` of the values [word][block] out in the order of the neurons.
template <class T>
void interleave(const T (&values)[4][kBlocks], std::int64_t count, T* out) {
    const std::int64_t whole = count / 4;
#pragma omp simd
    for (std::int64_t j = 0; j < whole; ++j) {
        for (int w = 0; w < 4; ++w) out[4 * j + w] = values[w][j];
    }
    for (std::int64_t i = 4 * whole; i < count; ++i) out[i] = values[i % 4][i / 4];
}

std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

void words(NoiseAddress address, std::uint32_t column, std::int64_t first, std::int64_t count,
           std::uint32_t* out) {
    Words batch;
    for (std::int64_t i = 0; i < count; i += 4 * kBlocks) {
        const std::int64_t now = smaller(4 * kBlocks, count - i);
        random_words<true>(address, static_cast<std::uint32_t>((first + i) / 4), column,
                           (now + 3) / 4, batch);
        interleave(batch.word, now, out + i);
    }
}

template <class T>
void normal_neurons(NoiseAddress address, std::uint32_t column, std::int64_t first,
                    std::int64_t count, T* out) {
    Words batch;
    Normals<T> normals;
    for (std::int64_t i = 0; i < count; i += 4 * kBlocks) {
        const std::int64_t now = smaller(4 * kBlocks, count - i);
        random_words<true>(address, static_cast<std::uint32_t>((first + i) / 4), column,
                           (now + 3) / 4, batch);
        normals_of_words(batch, (now + 3) / 4, normals);
        interleave(normals.z, now, out + i);
    }
}

template <class T>
void normal_columns(NoiseAddress address, std::int64_t first, int rows, std::int64_t first_column,
                    std::int64_t count, T* out, std::int64_t stride) {
    Words batch;
    Normals<T> normals;
    for (std::int64_t j = 0; j < count; j += kBlocks) {
        const std::int64_t now = smaller(kBlocks, count - j);
        random_words<false>(address, static_cast<std::uint32_t>(first / 4),
                            static_cast<std::uint32_t>(first_column + j), now, batch);
        normals_of_words(batch, now, normals);
        for (int row = 0; row < rows; ++row) {
            std::memcpy(out + row * stride + j, normals.z[row],
                        static_cast<std::size_t>(now) * sizeof(T));
        }
    }
}

template <class T>
void box_muller_blocks(const std::uint32_t* given, std::int64_t blocks, T* out) {
    Words batch;
    Normals<T> normals;
    for (std::int64_t j = 0; j < blocks; j += kBlocks) {
        const std::int64_t now = smaller(kBlocks, blocks - j);
        for (std::int64_t i = 0; i < 4 * now; ++i) batch.word[i % 4][i / 4] = given[4 * j + i];
        normals_of_words(batch, now, normals);
        interleave(normals.z, 4 * now, out + 4 * j);
    }
}

template <class T>
void activate(int activation, const T* x, std::int64_t count, T* out) {
    with_activation(static_cast<Activation>(activation), [=](auto phi) {
#pragma omp simd
        for (std::int64_t i = 0; i < count; ++i) out[i] = decltype(phi)::value(x[i]);
    });
}

template <class T>
void differentiate(int activation, const T* x, std::int64_t count, T* out) {
    with_activation(static_cast<Activation>(activation), [=](auto phi) {
#pragma omp simd
        for (std::int64_t i = 0; i < count; ++i) out[i] = decltype(phi)::derivative(x[i]);
    });
}

template <class T>
void adjoint_step(int activation, const T* skip, const T* features, const T* product, T scale,
                  std::int64_t count, T* out) {
    with_activation(static_cast<Activation>(activation), [=](auto phi) {
        if (skip) {
#pragma omp simd
            for (std::int64_t i = 0; i < count; ++i) {
                out[i] = fused_multiply_add(scale * decltype(phi)::derivative(features[i]),
                                            product[i], skip[i]);
            }
        } else {
#pragma omp simd
            for (std::int64_t i = 0; i < count; ++i) {
                out[i] = scale * decltype(phi)::derivative(features[i]) * product[i];
            }
        }
    });
}

template <class T>
void scale(T factor, const T* x, std::int64_t count, T* out) {
#pragma omp simd
    for (std::int64_t i = 0; i < count; ++i) out[i] = factor * x[i];
}

template <class T>
void axpy(T factor, const T* x, std::int64_t count, T* y) {
#pragma omp simd
    for (std::int64_t i = 0; i < count; ++i) y[i] = fused_multiply_add(factor, x[i], y[i]);
}

// x - x is 0 for finite x and NaN otherwise; a sum of such terms is 0 exactly when all are finite.
template <class T>
bool all_finite(const T* x, std::int64_t count) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = 0; i < count; ++i) sum += x[i] - x[i];
    return sum == 0;
}

// A fixed number of float64 partial sums, whatever the register width: the same sum on every
// instruction set that has fused operations.
constexpr int kPartials = 16;

template <class T, class F>
double sum_of(std::int64_t count, F term) {
    double partial[kPartials] = {};
    const std::int64_t whole = count / kPartials * kPartials;
    for (std::int64_t i = 0; i < whole; i += kPartials) {
#pragma omp simd
        for (int p = 0; p < kPartials; ++p) partial[p] = term(i + p, partial[p]);
    }
    for (std::int64_t i = whole; i < count; ++i)
        partial[i % kPartials] = term(i, partial[i % kPartials]);
    for (int half = kPartials / 2; half > 0; half /= 2) {
        for (int p = 0; p < half; ++p) partial[p] += partial[p + half];
    }
    return partial[0];
}

template <class T>
double dot(const T* x, const T* y, std::int64_t count) {
    return sum_of<T>(count, [=](std::int64_t i, double sum) {
        return fused_multiply_add(static_cast<double>(x[i]), static_cast<double>(y[i]), sum);
    });
}

template <class T>
double squared_distance(const T* x, const T* y, std::int64_t count) {
    return sum_of<T>(count, [=](std::int64_t i, double sum) {
        const double difference = static_cast<double>(x[i]) - static_cast<double>(y[i]);
        return fused_multiply_add(difference, difference, sum);
    });
}

template <class T>
void widen(const T* x, std::int64_t count, double* out) {
#pragma omp simd
    for (std::int64_t i = 0; i < count; ++i) out[i] = static_cast<double>(x[i]);
}

// The sums of one block stay in registers: as many as AVX2's sixteen allow, twice as many with
// AVX-512's thirty-two. Each column of a block is read once for all columns of the other side.
constexpr int kLeftBlock = kLanes == 8 ? 4 : 2;
constexpr int kRightBlock = 4;

template <int left_block, int right_block, class T>
void products_block(const T* left, std::int64_t left_stride, const double* right,
                    std::int64_t right_stride, std::int64_t count, std::int64_t ahead, double* sums,
                    std::int64_t sums_stride) {
    constexpr int width = kPack<double>;
    using Wide = Pack<double, width>;
    using Narrow = Pack<T, width>;
    // An addition takes four cycles: fewer sums than that would wait for each other.
    constexpr int chains = left_block * right_block < 4 ? 2 : 1;
    Wide sum[chains][left_block][right_block];
    for (int chain = 0; chain < chains; ++chain) {
        for (int j = 0; j < left_block; ++j) {
            for (int c = 0; c < right_block; ++c) sum[chain][j][c] = Wide{};
        }
    }
    const auto add = [&](std::int64_t i, int chain) {
        Wide factor[right_block];
        for (int c = 0; c < right_block; ++c) {
            factor[c] = load_pack<Wide>(right + c * right_stride + i);
        }
        for (int j = 0; j < left_block; ++j) {
            const Wide value = convert_pack<Wide>(load_pack<Narrow>(left + j * left_stride + i));
            for (int c = 0; c < right_block; ++c) {
                sum[chain][j][c] = multiply_add(value, factor[c], sum[chain][j][c]);
            }
        }
    };
    const std::int64_t whole = count / width * width;
    std::int64_t i = 0;
    for (; i + kCacheLine<T> <= whole; i += kCacheLine<T>) {
        for (int j = 0; j < left_block; ++j) prefetch(left + j * left_stride + i + ahead);
        NFD_FAST_UNROLL
        for (int k = 0; k < kCacheLine<T>; k += width) add(i + k, k / width % chains);
    }
    for (; i < whole; i += width) add(i, 0);
    for (int j = 0; j < left_block; ++j) {
        for (int c = 0; c < right_block; ++c) {
            for (int chain = 1; chain < chains; ++chain) sum[0][j][c] += sum[chain][j][c];
            double lanes[width];
            store_pack(sum[0][j][c], lanes);
            double total = 0;
            for (int lane = 0; lane < width; ++lane) total += lanes[lane];
            for (std::int64_t k = whole; k < count; ++k) {
                total = fused_multiply_add(static_cast<double>(left[j * left_stride + k]),
                                           right[c * right_stride + k], total);
            }
            sums[j * sums_stride + c] += total;
        }
    }
}

// For at most kRightBlock columns on the right.
template <class T>
void products_with(const T* left, std::int64_t left_stride, std::int64_t left_count,
                   const double* right, std::int64_t right_stride, std::int64_t right_count,
                   std::int64_t count, std::int64_t ahead, double* sums, std::int64_t sums_stride) {
    with_constant<kRightBlock>(right_count, [&](auto right_block) {
        for (std::int64_t j = 0; j < left_count; j += kLeftBlock) {
            with_constant<kLeftBlock>(smaller(kLeftBlock, left_count - j), [&](auto left_block) {
                products_block<decltype(left_block)::value, decltype(right_block)::value>(
                    left + j * left_stride, left_stride, right, right_stride, count, ahead,
                    sums + j * sums_stride, sums_stride);
            });
        }
    });
}

template <class T>
void products(const T* left, std::int64_t left_stride, std::int64_t left_count, const double* right,
              std::int64_t right_stride, std::int64_t right_count, std::int64_t count,
              std::int64_t ahead, double* sums) {
    for (std::int64_t c = 0; c < right_count; c += kRightBlock) {
        products_with(left, left_stride, left_count, right + c * right_stride, right_stride,
                      smaller(kRightBlock, right_count - c), count, ahead, sums + c, right_count);
    }
}

template <class T>
void gram(const T* columns, std::int64_t stride, const double* wide, std::int64_t wide_stride,
          std::int64_t column_count, std::int64_t count, double* sums) {
    for (std::int64_t c = 0; c < column_count; c += kRightBlock) {
        products_with(columns + c * stride, stride, column_count - c, wide + c * wide_stride,
                      wide_stride, smaller(kRightBlock, column_count - c), count, 0,
                      sums + c * column_count + c, column_count);
    }
}

// Outputs from `first` on, neurons from `i` on: their sums stay in registers over all sets.
template <int packs, int output_block, class T>
void combine_block(const Terms<T>* terms, int sets, std::int64_t outputs, std::int64_t first,
                   std::int64_t i, const T* start, std::int64_t start_stride, T* out,
                   std::int64_t out_stride) {
    constexpr int width = kPack<T>;
    using P = Pack<T, width>;
    P sum[output_block][packs];
    for (int c = 0; c < output_block; ++c) {
        for (int v = 0; v < packs; ++v) {
            sum[c][v] = start ? load_pack<P>(start + c * start_stride + i + v * width) : P{};
        }
    }
    for (int set = 0; set < sets; ++set) {
        const Terms<T> from = terms[set];
        for (std::int64_t j = 0; j < from.count; ++j) {
            const T* column = from.columns + j * from.stride + i;
            P value[packs];
            for (int v = 0; v < packs; ++v) value[v] = load_pack<P>(column + v * width);
            for (std::int64_t k = 0; k < packs * width; k += kCacheLine<T>) {
                prefetch(column + k + from.ahead);
            }
            for (int c = 0; c < output_block; ++c) {
                const P factor = broadcast_pack<P>(from.coefficients[j * outputs + first + c]);
                for (int v = 0; v < packs; ++v) {
                    sum[c][v] = multiply_add(value[v], factor, sum[c][v]);
                }
            }
        }
    }
    for (int c = 0; c < output_block; ++c) {
        for (int v = 0; v < packs; ++v) {
            store_pack(sum[c][v], out + c * out_stride + i + v * width);
        }
    }
}

template <int output_block, class T>
void combine_outputs(const Terms<T>* terms, int sets, std::int64_t outputs, std::int64_t first,
                     std::int64_t count, const T* start, std::int64_t start_stride, T* out,
                     std::int64_t out_stride) {
    // One output leaves registers for more neurons, which share the cost of finding the terms.
    constexpr int packs = output_block == 1 ? 4 : 2;
    std::int64_t i = 0;
    for (; i + packs * kPack<T> <= count; i += packs * kPack<T>) {
        combine_block<packs, output_block>(terms, sets, outputs, first, i, start, start_stride, out,
                                           out_stride);
    }
    for (; i + kPack<T> <= count; i += kPack<T>) {
        combine_block<1, output_block>(terms, sets, outputs, first, i, start, start_stride, out,
                                       out_stride);
    }
    for (; i < count; ++i) {
        for (int c = 0; c < output_block; ++c) {
            T sum = start ? start[c * start_stride + i] : T(0);
            for (int set = 0; set < sets; ++set) {
                const Terms<T> from = terms[set];
                for (std::int64_t j = 0; j < from.count; ++j) {
                    sum = fused_multiply_add(from.columns[j * from.stride + i],
                                             from.coefficients[j * outputs + first + c], sum);
                }
            }
            out[c * out_stride + i] = sum;
        }
    }
}

template <class T>
void combine(const Terms<T>* terms, int sets, std::int64_t outputs, std::int64_t count,
             const T* start, std::int64_t start_stride, T* out, std::int64_t out_stride) {
    constexpr int block = 4;
    for (std::int64_t first = 0; first < outputs; first += block) {
        with_constant<block>(smaller(block, outputs - first), [&](auto output_block) {
            combine_outputs<decltype(output_block)::value>(
                terms, sets, outputs, first, count, start ? start + first * start_stride : nullptr,
                start_stride, out + first * out_stride, out_stride);
        });
    }
}

template <class T>
constexpr VectorKernels<T> kVectorKernels{normal_neurons<T>,
                                          normal_columns<T>,
                                          box_muller_blocks<T>,
                                          activate<T>,
                                          differentiate<T>,
                                          adjoint_step<T>,
                                          scale<T>,
                                          axpy<T>,
                                          all_finite<T>,
                                          dot<T>,
                                          squared_distance<T>,
                                          widen<T>,
                                          products<T>,
                                          gram<T>,
                                          combine<T>,
                                          kMostThinHere,
                                          kPack<T>,
                                          pack_column<T>,
                                          unpack_column<T>,
                                          thin_forward<T>,
                                          thin_backward<T>,
                                          kMostBlockedHere,
                                          kPanel<T>,
                                          kMostBlockedHere > 0 ? multiply<T> : nullptr,
                                          kMostBlockedHere > 0 ? transpose<T> : nullptr};

}  // namespace

extern const KernelTable kernel_table;
const KernelTable kernel_table{NFD_FAST_STRING(NFD_FAST_TARGET), words, kVectorKernels<float>,
                               kVectorKernels<double>};

}  // namespace NFD_FAST_TARGET
}  // namespace nfd_fast
