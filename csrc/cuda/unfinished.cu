// Engines that are still being written: each section goes when its engine comes, the file with the
// last one.
#include "cuda/device_error.hpp"
#include "cuda/engine.hpp"

namespace nfd_fast::cuda {

#define NFD_FAST_UNFINISHED(T, engine)                               \
    template <>                                                      \
    void train_##engine(const Problem<T>&, Monitor&) {               \
        throw DeviceError("this engine is not there yet: " #engine); \
    }                                                                \
    template <>                                                      \
    double engine##_bytes(const Problem<T>&) {                       \
        return 0;                                                    \
    }

NFD_FAST_UNFINISHED(float, dense)
NFD_FAST_UNFINISHED(double, dense)

}  // namespace nfd_fast::cuda
