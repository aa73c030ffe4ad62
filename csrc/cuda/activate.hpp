// The activations in kernels: the choice is the same for all threads, so that a switch costs
// little.
#pragma once

#include "cuda/device.hpp"
#include "nfd_fast/activations.hpp"

namespace nfd_fast::cuda {

#define NFD_FAST_CASE(name, function) \
    case Activation::name:            \
        return activation::name::function(x);
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

#undef NFD_FAST_DERIVATIVE
#undef NFD_FAST_VALUE
#undef NFD_FAST_CASE

}  // namespace nfd_fast::cuda
