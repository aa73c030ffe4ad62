// The activations in kernels: the choice is the same for all threads, so that a switch costs
// little.
#pragma once

#include "cuda/device.hpp"
#include "nfd_fast/activations.hpp"
#include "nfd_fast/config.hpp"

namespace nfd_fast::cuda {

#define NFD_FAST_CASE(name, function) \
    case Activation::name:            \
        return nfd_fast::activation::name::function(x);
#define NFD_FAST_VALUE(name, formula) NFD_FAST_CASE(name, value)
#define NFD_FAST_DERIVATIVE(name, formula) NFD_FAST_CASE(name, derivative)

template <class T>
__device__ inline T activate(int choice, T x) {
    switch (static_cast<Activation>(choice)) { NFD_FAST_ACTIVATIONS(NFD_FAST_VALUE) }
    return x;
}

template <class T>
__device__ inline T differentiate(int choice, T x) {
    switch (static_cast<Activation>(choice)) { NFD_FAST_ACTIVATIONS(NFD_FAST_DERIVATIVE) }
    return x;
}

#undef NFD_FAST_CASE

// The same in place for several numbers: one choice for all.
#define NFD_FAST_CASE(name, function)                                                  \
    case Activation::name:                                                             \
        NFD_FAST_UNROLL                                                                \
        for (int i = 0; i < N; ++i) x[i] = nfd_fast::activation::name::function(x[i]); \
        return;

template <int N, class T>
__device__ inline void activate(int choice, T (&x)[N]) {
    switch (static_cast<Activation>(choice)) { NFD_FAST_ACTIVATIONS(NFD_FAST_VALUE) }
}

template <int N, class T>
__device__ inline void differentiate(int choice, T (&x)[N]) {
    switch (static_cast<Activation>(choice)) { NFD_FAST_ACTIVATIONS(NFD_FAST_DERIVATIVE) }
}

#undef NFD_FAST_DERIVATIVE
#undef NFD_FAST_VALUE
#undef NFD_FAST_CASE

}  // namespace nfd_fast::cuda
