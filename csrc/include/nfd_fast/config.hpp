// What every header of this folder needs to know about the compiler and the target.

#pragma once

/// Namespace of the instruction set being compiled for. Each instruction-set translation unit
/// defines its own before the first include: inline functions that were compiled with different
/// -m flags would otherwise share one name, and the linker would keep any one of them, so that a
/// baseline machine could end up executing AVX-512 code.
#ifndef NFD_FAST_TARGET
#define NFD_FAST_TARGET generic
#endif

/// Callable from the host and, under CUDA, from the device.
#if defined(__CUDACC__)
#define NFD_FAST_HD __host__ __device__
#else
#define NFD_FAST_HD
#endif

/// The same, never inlined on the device: for long functions, which would otherwise be compiled
/// again wherever they are called, for minutes.
#if defined(__CUDACC__)
#define NFD_FAST_HD_OUTLINE NFD_FAST_HD __noinline__
#else
#define NFD_FAST_HD_OUTLINE
#endif

/// Callable from both and always inlined: a call left standing inside a loop keeps it from being
/// vectorised.
#if defined(__CUDACC__)
#define NFD_FAST_INLINE NFD_FAST_HD __forceinline__
#elif defined(_MSC_VER)
#define NFD_FAST_INLINE NFD_FAST_HD __forceinline
#else
#define NFD_FAST_INLINE NFD_FAST_HD inline __attribute__((always_inline))
#endif

/// Never inlined: a loop that needs all registers for itself.
#if defined(_MSC_VER)
#define NFD_FAST_NOINLINE __declspec(noinline)
#else
#define NFD_FAST_NOINLINE __attribute__((noinline))
#endif

/// A loop of constant length that must become straight-line code to stay in registers.
#if defined(__CUDACC__) || defined(__clang__)
#define NFD_FAST_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define NFD_FAST_UNROLL _Pragma("GCC unroll 16")
#else
#define NFD_FAST_UNROLL
#endif

/// Whether the target multiplies and adds with one rounding in hardware. Where it does not,
/// `fused_multiply_add` rounds twice: a software fma would be a hundred times slower.
#if defined(__CUDA_ARCH__) || defined(__FMA__) || defined(__AVX512F__) || defined(__aarch64__) || \
    (defined(_MSC_VER) && (defined(__AVX2__) || defined(_M_ARM64)))
#define NFD_FAST_HAS_FMA 1
#else
#define NFD_FAST_HAS_FMA 0
#endif
