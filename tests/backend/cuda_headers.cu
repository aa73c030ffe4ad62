// Compiled, not run, where nvcc exists: the shared headers must stay valid device code.
#include "nfd_fast/activations.hpp"
#include "nfd_fast/gaussian_moments.hpp"
#include "nfd_fast/losses.hpp"
#include "nfd_fast/normal.hpp"
#include "nfd_fast/philox.hpp"
#include "nfd_fast/small_matrix.hpp"

namespace {

template <class T, class Phi>
__device__ T probe(T x) {
    return Phi::value(x) + Phi::derivative(x);
}

template <class T>
__global__ void headers(std::uint32_t key0, std::uint32_t key1, T* out, double* loss) {
    nfd_fast::PhiloxCounter<std::uint64_t> block[1] = {{threadIdx.x, 1, 2, 0}};
    nfd_fast::philox4x32(block, key0, key1);
    const auto normals = nfd_fast::box_muller<T>(static_cast<std::uint32_t>(block[0].c0),
                                                 static_cast<std::uint32_t>(block[0].c1));
    T sum = normals.first + normals.second;
#define NFD_FAST_PROBE(name, formula) sum += probe<T, nfd_fast::activation::name>(sum);
    NFD_FAST_ACTIVATIONS(NFD_FAST_PROBE)
#undef NFD_FAST_PROBE
    out[threadIdx.x] = sum;
    double chi[2];
    const double outputs[2] = {static_cast<double>(sum), 1.0};
    loss[threadIdx.x] = nfd_fast::mse(outputs, outputs, 2, chi) +
                        nfd_fast::cross_entropy(outputs, 1, 2, chi) + chi[0];
    const auto moments = nfd_fast::closed_moments(nfd_fast::Activation::relu, 1.0, 2.0, chi[0]);
    double square[4] = {2.0, 1.0, 1.0, 2.0};
    const nfd_fast::Small factor{square, 2};
    loss[threadIdx.x] += moments.product + moments.slope_product + square[0];
}

template __global__ void headers<float>(std::uint32_t, std::uint32_t, float*, double*);
template __global__ void headers<double>(std::uint32_t, std::uint32_t, double*, double*);

}  // namespace
