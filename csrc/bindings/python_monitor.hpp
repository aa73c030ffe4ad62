// Lets Python interrupt a computation that runs without the GIL, and hear of its progress.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>

#include "bindings/gil.hpp"
#include "training/monitor.hpp"

namespace nfd_fast::bindings {

class PythonMonitor final : public Monitor {
  public:
    // `progress` is None or a callable progress(done, total).
    PythonMonitor(std::int64_t total, pybind11::object progress)
        : Monitor(total), progress_(std::move(progress)) {}

    // Call with the GIL held, after the computation: raises what a signal handler or the callable
    // raised meanwhile, else reports the end.
    void finish() {
        if (error_ || !report(total(), total())) throw pybind11::error_already_set();
    }

  protected:
    bool go_on(std::int64_t done, std::int64_t total) override {
        const auto now = std::chrono::steady_clock::now();
        if (now - last_ < kInterval) return true;
        last_ = now;
        const WithGil with_gil;
        const bool signalled = take_unless_python_ends([] { return PyErr_CheckSignals() != 0; });
        error_ = signalled || !report(done, total);
        return !error_;
    }

  private:
    // Whether the callable, if there is one, has not raised. It may let the lock go, and ask for it
    // again when Python ends: then nothing of C++ may lie between it and where that is caught.
    bool report(std::int64_t done, std::int64_t total) const {
        if (progress_.is_none()) return true;
        const pybind11::tuple arguments = pybind11::make_tuple(done, total);
        PyObject* const result = take_unless_python_ends(
            [&] { return PyObject_Call(progress_.ptr(), arguments.ptr(), nullptr); });
        Py_XDECREF(result);
        return result != nullptr;
    }

    // Often enough that Ctrl-C feels immediate, seldom enough to cost nothing.
    static constexpr std::chrono::milliseconds kInterval{100};

    pybind11::object progress_;
    std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
    bool error_ = false;
};

// Runs f without the GIL and then raises what Python raised meanwhile.
template <class F>
void run_monitored(PythonMonitor& monitor, F f) {
    {
        const WithoutGil without_gil;
        f();
    }
    monitor.finish();
}

}  // namespace nfd_fast::bindings
