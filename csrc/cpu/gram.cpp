#include "cpu/gram.hpp"

#include <algorithm>

#include "cpu/blas.hpp"
#include "cpu/kernels.hpp"

namespace nfd_fast {

template <class T>
void gram(const T* x, std::int64_t columns, std::int64_t width, int activation, double* scratch,
          Monitor& monitor, Team team, double* out) {
    std::fill_n(out, columns * columns, 0.0);
    T values[kGramNeurons];
    for (std::int64_t first = 0; first < width; first += kGramNeurons) {
        if (team.polls) monitor.poll();
        if (monitor.stopped()) return;
        const std::int64_t count = std::min(kGramNeurons, width - first);
        for (std::int64_t b = 0; b < columns; ++b) {
            const T* row = x + b * width + first;
            if (activation >= 0) {
                kernels().of<T>().activate(activation, row, count, values);
                row = values;
            }
            std::copy_n(row, count, scratch + b * count);
        }
        blas::multiply(blas::Transpose::no, blas::Transpose::yes, columns, columns, count,
                       1.0 / static_cast<double>(width), scratch, count, scratch, count, 1.0, out,
                       columns);
    }
}

template void gram<float>(const float*, std::int64_t, std::int64_t, int, double*, Monitor&, Team,
                          double*);
template void gram<double>(const double*, std::int64_t, std::int64_t, int, double*, Monitor&, Team,
                           double*);

}  // namespace nfd_fast
