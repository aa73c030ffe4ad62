// Random words, normals and initial weights on the device: the counterpart of cpu/weights.hpp.
//
// Pointers are to memory of the device. Everything is enqueued on the stream and returns at once.
#pragma once

#include <cstdint>

#include "nfd_fast/philox.hpp"

using cudaStream_t = struct CUstream_st*;  // as CUDA has it: who calls needs no more of it

namespace nfd_fast::cuda {

// The words of neurons 0 ... size - 1 of each column: out (count, size).
void words(NoiseAddress address, const std::uint32_t* columns, std::int64_t count,
           std::int64_t size, std::uint32_t* out, cudaStream_t stream);

// The normals of the same words.
template <class T>
void normals(NoiseAddress address, const std::uint32_t* columns, std::int64_t count,
             std::int64_t size, T* out, cudaStream_t stream);

// The four normals of each block of four words: out (blocks, 4).
template <class T>
void box_muller(const std::uint32_t* words, std::int64_t blocks, T* out, cudaStream_t stream);

// out (replicas, layers, rows, columns), one seed per replica: the rows are neurons, the columns
// indices; `fine` layers of noise are added up, in order, and normalised.
template <class T>
void fill_matrices(const std::uint64_t* seeds, int replicas, nfd_fast::Stream tag,
                   std::int64_t layers, std::int64_t rows, std::int64_t columns, std::int64_t fine,
                   T* out, cudaStream_t stream);

// out (replicas, columns, width), one seed per replica.
template <class T>
void fill_vectors(const std::uint64_t* seeds, int replicas, nfd_fast::Stream tag,
                  std::int64_t columns, std::int64_t width, T* out, cudaStream_t stream);

}  // namespace nfd_fast::cuda
