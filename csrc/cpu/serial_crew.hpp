// The crew of one thread that does a layer's algebra on the processor (layer_algebra.hpp).
#pragma once

#include <cstdint>

#include "cpu/blas.hpp"
#include "nfd_fast/small_matrix.hpp"
#include "training/monitor.hpp"

namespace nfd_fast {

class SerialCrew {
  public:
    // The monitor is null where nothing takes long. `polls`: whether its thread is the one that
    // may ask the monitor's owner.
    SerialCrew(Monitor* monitor, bool polls) : monitor_(monitor), polls_(polls) {}

    template <class F>
    void each(std::int64_t count, F f) const {
        for (std::int64_t i = 0; i < count; ++i) f(i);
    }
    template <class F>
    void each(std::int64_t rows, std::int64_t columns, F f) const {
        for (std::int64_t i = 0; i < rows; ++i) {
            for (std::int64_t j = 0; j < columns; ++j) f(i, j);
        }
    }
    template <class F>
    double sum(std::int64_t count, F f) const {
        double sum = 0;
        for (std::int64_t i = 0; i < count; ++i) sum += f(i);
        return sum;
    }
    template <class F>
    void alone(F f) const {
        f();
    }
    void sync() const {}
    bool stopped() const {
        if (!monitor_) return false;
        if (polls_) monitor_->poll();
        return monitor_->stopped();
    }

    void multiply(Transpose transpose, std::int64_t rows, std::int64_t columns, std::int64_t inner,
                  double factor, Small a, Small b, bool add, Small c) const {
        if (rows * columns * inner >= kBlasFrom) {
            if (stopped()) return;
            blas::multiply(transpose, Transpose::no, rows, columns, inner, factor, a.data, a.stride,
                           b.data, b.stride, add ? 1.0 : 0.0, c.data, c.stride);
        } else if (transpose == Transpose::yes) {
            multiply_small_transposed(rows, columns, inner, factor, a, b, add, c);
        } else {
            multiply_small(rows, columns, inner, factor, a, b, add, c);
        }
    }
    void solve(Transpose transpose, std::int64_t size, std::int64_t columns, Small r,
               Small b) const {
        if (size * size * columns >= kBlasFrom) {
            if (stopped()) return;
            blas::solve_upper(transpose, size, columns, r.data, r.stride, b.data, b.stride);
        } else if (transpose == Transpose::yes) {
            solve_transposed(size, columns, r, b);
        } else {
            solve_upper(size, columns, r, b);
        }
    }

  private:
    // From how many multiplications on BLAS, with its blocks, beats a plain loop without its calls.
    static constexpr std::int64_t kBlasFrom = std::int64_t{1} << 18;

    Monitor* const monitor_;
    const bool polls_;
};

}  // namespace nfd_fast
