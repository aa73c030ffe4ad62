// The vector kernels. This file is compiled once per instruction set, each time with its own
// NFD_FAST_TARGET (see CMakeLists.txt). It must not instantiate anything with external linkage
// outside that namespace, standard-library templates included: the linker would merge such code
// across instruction sets and an old processor could meet AVX-512.

#include "cpu/kernels.hpp"

#include <cmath>
#include <cstring>

#include "cpu/lanes.hpp"
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
    constexpr int chains = 2;
    constexpr std::int64_t step = chains * kLanes;
    static_assert(kBlocks % step == 0, "whole registers only");
    alignas(64) std::uint64_t lanes[4][kBlocks];
    for (std::int64_t j = 0; j < blocks; j += step) {
        PhiloxCounter<Lanes> counters[chains];
        for (int chain = 0; chain < chains; ++chain) {
            const Lanes run = consecutive_lanes(static_cast<std::uint64_t>(j + chain * kLanes));
            counters[chain] = {along_neurons ? run + c0 : Lanes{} + c0, Lanes{} + address.c1,
                               along_neurons ? Lanes{} + c2 : run + c2, Lanes{}};
        }
        philox4x32(counters, address.key0, address.key1);
        for (int chain = 0; chain < chains; ++chain) {
            const std::int64_t at = j + chain * kLanes;
            std::memcpy(&lanes[0][at], &counters[chain].c0, sizeof(Lanes));
            std::memcpy(&lanes[1][at], &counters[chain].c1, sizeof(Lanes));
            std::memcpy(&lanes[2][at], &counters[chain].c2, sizeof(Lanes));
            std::memcpy(&lanes[3][at], &counters[chain].c3, sizeof(Lanes));
        }
    }
    for (int w = 0; w < 4; ++w) {
#pragma omp simd
        for (std::int64_t j = 0; j < blocks; ++j) {
            words.word[w][j] = static_cast<std::uint32_t>(lanes[w][j]);
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
                                          squared_distance<T>};

}  // namespace

extern const KernelTable kernel_table;
const KernelTable kernel_table{NFD_FAST_STRING(NFD_FAST_TARGET), words, kVectorKernels<float>,
                               kVectorKernels<double>};

}  // namespace NFD_FAST_TARGET
}  // namespace nfd_fast
