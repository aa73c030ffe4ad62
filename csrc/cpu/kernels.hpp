// The table of vector kernels, compiled once per instruction set and chosen once at run time.
//
// Everything here works on plain runs of memory in the calling thread. Bits never depend on where
// a run starts or how it is cut: every operation is a correctly rounded IEEE operation on one
// element (contraction is off, fused operations are explicit), and reductions have a fixed shape.
#pragma once

#include <cstdint>
#include <vector>

#include "nfd_fast/philox.hpp"

namespace nfd_fast {

// The most columns that any instruction set's thin products (below) take.
constexpr std::int64_t kMostThin = 12;

// Columns, `stride` numbers from one to the next, and how much of each goes into each output.
template <class T>
struct Terms {
    const T* columns;
    std::int64_t stride, count;
    const T* coefficients;  // (count, outputs)
    std::int64_t ahead;     // see VectorKernels::products
};

// c[r * c_stride + j] += sum_k a[r * a_row + k * a_step] b[k * b_stride + j], `inner` terms each.
template <class T>
struct MatrixProduct {
    const T* a;
    std::int64_t a_row, a_step;
    const T* b;
    std::int64_t b_stride;
    T* c;
    std::int64_t c_stride;
    std::int64_t rows, columns, inner;
};

// A part of a matrix that will be wanted soon. It is never read, and may lie anywhere.
template <class T>
struct Ahead {
    const T* at = nullptr;
    std::int64_t stride = 0, rows = 0, columns = 0;
};

// `activation` arguments are the Activation enumerators as int: an enum of an ISA's own namespace
// can't appear in a type that all of them share.
template <class T>
struct VectorKernels {
    // Z of `count` consecutive neurons of one column; `first` is a multiple of 4.
    void (*normal_neurons)(NoiseAddress, std::uint32_t column, std::int64_t first,
                           std::int64_t count, T* out);
    // Z of up to four neurons first ... first + rows - 1 (`first` a multiple of 4) for consecutive
    // columns: out[row * stride + j].
    void (*normal_columns)(NoiseAddress, std::int64_t first, int rows, std::int64_t first_column,
                           std::int64_t count, T* out, std::int64_t stride);
    // Normals of blocks of four given words.
    void (*box_muller)(const std::uint32_t* words, std::int64_t blocks, T* out);

    void (*activate)(int activation, const T* x, std::int64_t count, T* out);
    void (*differentiate)(int activation, const T* x, std::int64_t count, T* out);
    // out = skip + scale * phi'(features) * product; skip is null for a network without one.
    void (*adjoint_step)(int activation, const T* skip, const T* features, const T* product,
                         T scale, std::int64_t count, T* out);

    void (*scale)(T factor, const T* x, std::int64_t count, T* out);  // out = factor x
    void (*axpy)(T factor, const T* x, std::int64_t count, T* y);     // y += factor x
    bool (*all_finite)(const T* x, std::int64_t count);
    double (*dot)(const T* x, const T* y, std::int64_t count);
    double (*squared_distance)(const T* x, const T* y, std::int64_t count);

    void (*widen)(const T* x, std::int64_t count, double* out);
    // Both of the following also ask for the memory `ahead` numbers after what they read, where
    // what is wanted later lies: the processor does not foresee many short columns.
    // sums[j * right_count + c] += sum_i left[j * left_stride + i] right[c * right_stride + i], in
    // float64.
    void (*products)(const T* left, std::int64_t left_stride, std::int64_t left_count,
                     const double* right, std::int64_t right_stride, std::int64_t right_count,
                     std::int64_t count, std::int64_t ahead, double* sums);
    // The same of columns with themselves, which are also given in float64, where j >= c; elsewhere
    // it is arbitrary.
    void (*gram)(const T* columns, std::int64_t stride, const double* wide,
                 std::int64_t wide_stride, std::int64_t column_count, std::int64_t count,
                 double* sums);
    // out[c * out_stride + i] = start[c * start_stride + i]
    //                           + sum_j columns[j * stride + i] coefficients[j * outputs + c],
    // the sum over all terms of all sets in their order; without start if that is null. It may be
    // out itself.
    void (*combine)(const Terms<T>* terms, int sets, std::int64_t outputs, std::int64_t count,
                    const T* start, std::int64_t start_stride, T* out, std::int64_t out_stride);

    // Products of a stored matrix with a batch of at most `most_thin` columns: thin_products.hpp.
    // A packed batch has its columns side by side in runs of `pack` numbers, the last run of each
    // filled up with zeros.
    std::int64_t most_thin;
    std::int64_t pack;
    // Column b is packed to `packed` = batch + b * pack, and back.
    void (*pack_column)(const T* column, std::int64_t count, std::int64_t batch, T* packed);
    void (*unpack_column)(const T* packed, std::int64_t batch, std::int64_t count, T* column);
    // out[b * stride_out + r] = skip[b * stride_out + r] + scale sum_i matrix[r * stride + i]
    // batch[b][i]; without skip if that is null.
    void (*thin_forward)(const T* matrix, std::int64_t stride, std::int64_t rows,
                         std::int64_t count, const T* packed, std::int64_t batch, T scale,
                         const T* skip, T* out, std::int64_t stride_out);
    // Both in one pass over `count` columns of a matrix, the first before the second; null for
    // what isn't wanted:
    //     product[b][i] += sum_r factors[b * factors_stride + r] matrix[r * stride + i]
    //     matrix[r * stride + i] += sum_b factors[b * factors_stride + r] weighted[b][i]
    void (*thin_backward)(T* matrix, std::int64_t stride, std::int64_t rows, std::int64_t count,
                          const T* factors, std::int64_t factors_stride, std::int64_t batch,
                          const T* weighted, T* product);

    // Larger products, without a copy of an operand: block_products.hpp. For a batch of at most
    // `most_blocked` columns they are faster than the BLAS library; where that is 0 there are none.
    // b is best cut into panels of `panel` columns.
    std::int64_t most_blocked;
    std::int64_t panel;
    void (*multiply)(const MatrixProduct<T>&, const Ahead<T>&);
    // to[c * to_stride + r] = from[r * from_stride + c].
    void (*transpose)(const T* from, std::int64_t from_stride, std::int64_t rows,
                      std::int64_t columns, T* to, std::int64_t to_stride);
};

struct KernelTable {
    const char* name;
    void (*words)(NoiseAddress, std::uint32_t column, std::int64_t first, std::int64_t count,
                  std::uint32_t* out);
    VectorKernels<float> float32;
    VectorKernels<double> float64;

    template <class T>
    const VectorKernels<T>& of() const {
        if constexpr (sizeof(T) == sizeof(float)) {
            return float32;
        } else {
            return float64;
        }
    }
};

// The table in use: the best this processor supports, or the one named by NFD_FAST_ISA. Throws
// std::runtime_error if that variable names one that is unknown, not compiled in or unsupported.
const KernelTable& kernels();

// Names of the compiled tables, best last, and of those this processor can run.
std::vector<const char*> compiled_instruction_sets();
std::vector<const char*> supported_instruction_sets();

}  // namespace nfd_fast
