// NumPy arrays as the pointers and sizes that kernels take.
//
// The Python side has checked values and shapes and says so in words; what is checked here again
// is only what keeps a wrong call from touching memory that isn't its own.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>

namespace nfd_fast::bindings {

namespace py = pybind11;

// Never converts: an argument of another dtype or layout is a TypeError, not a hidden copy.
template <class T>
using Array = py::array_t<T, py::array::c_style>;

template <class T>
void require_shape(const char* name, const Array<T>& array,
                   std::initializer_list<std::int64_t> shape) {
    bool same = array.ndim() == static_cast<py::ssize_t>(shape.size());
    py::ssize_t axis = 0;
    for (const std::int64_t length : shape) same = same && array.shape(axis++) == length;
    if (same) return;
    std::string expected, got;
    for (const std::int64_t length : shape) expected += std::to_string(length) + ", ";
    for (py::ssize_t i = 0; i < array.ndim(); ++i) got += std::to_string(array.shape(i)) + ", ";
    throw py::value_error(std::string(name) + " must have shape (" + expected + "), got (" + got +
                          ")");
}

// The data of an array that may be absent.
template <class T>
T* data_or_null(std::optional<Array<T>>& array) {
    return array ? array->mutable_data() : nullptr;
}

}  // namespace nfd_fast::bindings
