// Devices, their memory, and arrays there.

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <vector>

#include "bindings/build_identity.hpp"
#include "bindings/dlpack.hpp"
#include "cuda/cublas.hpp"
#include "cuda/devices.hpp"
#include "cuda/probes.hpp"

namespace nfd_fast::bindings {
namespace {

// An array in memory of the current device that is its own, and DLPack's to share: what the tests
// hand to kernels where no other library has a device.
class OwnedArray {
  public:
    explicit OwnedArray(const py::array& values) {
        const py::array from = py::array::ensure(values, py::array::c_style);
        const char kind = from.dtype().kind();
        const auto bits = static_cast<std::uint8_t>(8 * from.itemsize());
        type_ = {kind == 'f' ? dlpack::kFloat : dlpack::kUnsigned, bits, 1};
        if (kind != 'f' && kind != 'u') throw py::type_error("only floats and unsigned integers");
        numpy_type_ = from.dtype();
        shape_.assign(from.shape(), from.shape() + from.ndim());
        bytes_ = static_cast<std::size_t>(from.nbytes());
        memory_ = std::make_shared<cuda::StreamMemory>(bytes_, stream());
        cuda::to_device(memory_->as<void>(), from.data(), bytes_, stream());
        cuda::wait_for(stream());
    }

    py::array numpy() const {
        py::array to(numpy_type_, shape_);
        cuda::to_host(to.mutable_data(), memory_->as<void>(), bytes_, stream());
        return to;
    }

    py::capsule share() const {
        struct Shared {
            dlpack::Managed managed;
            std::vector<std::int64_t> shape;
            std::shared_ptr<cuda::StreamMemory> memory;
        };
        auto* shared = new Shared{{}, shape_, memory_};
        shared->managed.tensor = {memory_->as<void>(),
                                  {dlpack::kCuda, 0},
                                  static_cast<std::int32_t>(shape_.size()),
                                  type_,
                                  shared->shape.data(),
                                  nullptr,
                                  0};
        shared->managed.owner = shared;
        shared->managed.deleter = [](dlpack::Managed* self) {
            delete static_cast<Shared*>(self->owner);
        };
        return py::capsule(&shared->managed, "dltensor", [](PyObject* capsule) {
            if (!PyCapsule_IsValid(capsule, "dltensor")) return;  // used: its user deletes it
            auto* left = static_cast<dlpack::Managed*>(PyCapsule_GetPointer(capsule, "dltensor"));
            left->deleter(left);
        });
    }

  private:
    static cudaStream_t stream() { return reinterpret_cast<cudaStream_t>(cuda::kLegacyStream); }

    dlpack::DataType type_{};
    py::dtype numpy_type_;
    std::vector<py::ssize_t> shape_;
    std::size_t bytes_ = 0;
    std::shared_ptr<cuda::StreamMemory> memory_;
};

}  // namespace

void register_devices(py::module_& module) {
    module.def("runtime_version", &cuda::runtime_version);
    module.def("driver_version", &cuda::driver_version,
               "1000 major + 10 minor of the CUDA that the driver supports; 0 without a driver.");
    module.def("device_count", &cuda::device_count);
    module.def("devices", [] {
        py::list found;
        for (const cuda::Device& device : cuda::devices()) {
            py::dict entry;
            entry["name"] = device.name;
            entry["memory"] = device.memory;
            entry["available"] = device.available;
            entry["compute_capability"] = py::make_tuple(device.major, device.minor);
            entry["multiprocessors"] = device.multiprocessors;
            found.append(entry);
        }
        return found;
    });
    module.def("available", &cuda::available_bytes, "Free memory of the current device, in bytes.");
    module.def("copy_rate", &cuda::copy_rate, py::arg("bytes"),
               "Bytes per second, read and written, of copies of so many.");
    module.def("write_rate", &cuda::write_rate, py::arg("bytes"));
    module.def(
        "multiply_add_rate",
        [](const std::string& dtype, int rounds) {
            if (dtype == "float32") return cuda::multiply_add_rate<float>(rounds);
            if (dtype == "float64") return cuda::multiply_add_rate<double>(rounds);
            throw py::value_error("dtype must be float32 or float64");
        },
        py::arg("dtype"), py::arg("rounds"),
        "Operations per second, two for each multiply-add, operands in registers.");
    module.def("set_cublas_path", &cuda::set_cublas_path, py::arg("path"));
    module.def("cublas_path", &cuda::cublas_path, "What was loaded; empty if nothing was found.");
    module.def("allow_tf32", &cuda::allow_tf32, py::arg("allowed"));
    module.def("tf32_allowed", &cuda::tf32_allowed);
    register_build_identity(module);
    module.attr("ARCHITECTURES") = NFD_FAST_CUDA_ARCHITECTURES;

    py::class_<OwnedArray>(module, "OwnedArray", py::module_local())
        .def(py::init<const py::array&>(), py::arg("values"))
        .def("numpy", &OwnedArray::numpy)
        .def("__dlpack__", [](const OwnedArray& a, const py::kwargs&) { return a.share(); })
        .def("__dlpack_device__",
             [](const OwnedArray&) { return py::make_tuple(dlpack::kCuda, 0); });
    py::class_<BorrowedArray>(module, "BorrowedArray", py::module_local())
        .def(py::init<const py::capsule&>(), py::arg("capsule"))
        .def_property_readonly(
            "shape", [](const BorrowedArray& a) { return py::tuple(py::cast(a.shape())); })
        .def_property_readonly("ndim", [](const BorrowedArray& a) { return a.shape().size(); })
        .def_property_readonly("dtype", &BorrowedArray::type_name)
        .def_property_readonly("device", [](const BorrowedArray& a) { return a.device().index; })
        .def_property_readonly("contiguous", &BorrowedArray::contiguous)
        .def_property_readonly("read_only", &BorrowedArray::read_only)
        .def_property_readonly("address", &BorrowedArray::address)
        .def_property_readonly("bytes", &BorrowedArray::bytes);
}

}  // namespace nfd_fast::bindings
