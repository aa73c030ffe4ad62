// What CUDA's failures become.
#pragma once

#include <stdexcept>

namespace nfd_fast::cuda {

// CUDA refused or failed.
class DeviceError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

}  // namespace nfd_fast::cuda
