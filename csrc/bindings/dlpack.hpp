// Arrays that libraries hand each other with DLPack: the structures that its interface promises
// (https://dmlc.github.io/dlpack), and what the kernels of a device need to know of one.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace nfd_fast::bindings {

namespace py = pybind11;

namespace dlpack {

constexpr std::int32_t kCuda = 2;
enum Code : std::uint8_t { kInt, kUnsigned, kFloat };

struct Device {
    std::int32_t type;
    std::int32_t index;
};
struct DataType {
    std::uint8_t code;
    std::uint8_t bits;
    std::uint16_t lanes;
};
struct Tensor {
    void* data;
    Device device;
    std::int32_t axes;
    DataType type;
    std::int64_t* shape;
    std::int64_t* strides;  // in elements; null for C-contiguous
    std::uint64_t byte_offset;
};
struct Managed {  // "dltensor"
    Tensor tensor;
    void* owner;
    void (*deleter)(Managed*);
};
struct Versioned {  // "dltensor_versioned"
    std::uint32_t major, minor;
    void* owner;
    void (*deleter)(Versioned*);
    std::uint64_t flags;
    Tensor tensor;
};
constexpr std::uint64_t kReadOnly = 1;

template <class T>
constexpr DataType type_of() {
    return {std::is_floating_point_v<T> ? kFloat : kUnsigned, 8 * sizeof(T), 1};
}

inline bool operator==(DataType a, DataType b) {
    return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
}

inline std::string name(DataType type) {
    const std::string code = type.code == kInt        ? "int"
                             : type.code == kUnsigned ? "uint"
                             : type.code == kFloat
                                 ? "float"
                                 : "DLPack type " + std::to_string(type.code) + ", ";
    return code + std::to_string(type.bits) +
           (type.lanes == 1 ? "" : " in " + std::to_string(type.lanes) + " lanes");
}

}  // namespace dlpack

// An array of another library, whose memory is kept alive as long as this is.
class BorrowedArray {
  public:
    // `capsule` is what __dlpack__ returned, and is used up.
    explicit BorrowedArray(const py::capsule& capsule) {
        const char* name = capsule.name();
        if (name && std::string(name) == "dltensor_versioned") {
            versioned_ = capsule.get_pointer<dlpack::Versioned>();
            if (versioned_->major != 1) {
                versioned_ = nullptr;
                throw py::value_error("DLPack of another version than 1");
            }
            tensor_ = &versioned_->tensor;
            PyCapsule_SetName(capsule.ptr(), "used_dltensor_versioned");
        } else if (name && std::string(name) == "dltensor") {
            managed_ = capsule.get_pointer<dlpack::Managed>();
            tensor_ = &managed_->tensor;
            PyCapsule_SetName(capsule.ptr(), "used_dltensor");
        } else {
            throw py::value_error("not a fresh capsule of DLPack");
        }
    }
    ~BorrowedArray() {
        if (managed_ && managed_->deleter) managed_->deleter(managed_);
        if (versioned_ && versioned_->deleter) versioned_->deleter(versioned_);
    }
    BorrowedArray(const BorrowedArray&) = delete;
    BorrowedArray& operator=(const BorrowedArray&) = delete;

    std::vector<std::int64_t> shape() const {
        return {tensor_->shape, tensor_->shape + tensor_->axes};
    }
    std::string type_name() const { return dlpack::name(tensor_->type); }
    dlpack::Device device() const { return tensor_->device; }
    bool read_only() const { return versioned_ && (versioned_->flags & dlpack::kReadOnly) != 0; }
    std::int64_t size() const {
        std::int64_t size = 1;
        for (std::int32_t axis = 0; axis < tensor_->axes; ++axis) size *= tensor_->shape[axis];
        return size;
    }
    bool contiguous() const {
        if (!tensor_->strides || size() == 0) return true;
        std::int64_t stride = 1;
        for (std::int32_t axis = tensor_->axes - 1; axis >= 0; --axis) {
            if (tensor_->shape[axis] != 1 && tensor_->strides[axis] != stride) return false;
            stride *= tensor_->shape[axis];
        }
        return true;
    }
    std::int64_t bytes() const { return size() * tensor_->type.bits * tensor_->type.lanes / 8; }
    std::uintptr_t address() const {
        return reinterpret_cast<std::uintptr_t>(tensor_->data) + tensor_->byte_offset;
    }

    // What is checked is only what keeps a wrong call from touching memory that isn't its own, as
    // in arrays.hpp.
    template <class T>
    T* data(const char* name, std::initializer_list<std::int64_t> expected) const {
        if (!(tensor_->type == dlpack::type_of<T>()) || !contiguous() ||
            shape() != std::vector<std::int64_t>(expected) || address() % sizeof(T) != 0) {
            throw py::type_error(std::string(name) + " must be contiguous, of dtype " +
                                 dlpack::name(dlpack::type_of<T>()) + " and the right shape");
        }
        return reinterpret_cast<T*>(address());
    }

  private:
    dlpack::Managed* managed_ = nullptr;
    dlpack::Versioned* versioned_ = nullptr;
    const dlpack::Tensor* tensor_ = nullptr;
};

}  // namespace nfd_fast::bindings
