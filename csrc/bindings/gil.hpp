// Python's lock, let go while kernels run and taken again, also where Python is ending.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <thread>
#ifdef __GLIBCXX__
#include <cxxabi.h>
#endif

namespace nfd_fast::bindings {

[[noreturn]] inline void wait_for_the_end() {
    for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}

// Whether this thread is the one that ends Python, in which code may still run then.
inline thread_local bool ends_python = false;

// Calls what may ask for the lock. A daemon thread may do so when Python has begun to end: up to
// 3.13 that ends the thread, which in the GNU C library unwinds its stack, through destructors that
// let nothing pass, or that give back a lock which it has not: the process would be aborted; and
// later the thread's own state is gone. Here it waits for the end of the process instead, as Python
// 3.14 has it.
template <class Take>
auto take_unless_python_ends(Take take) {
    if (!ends_python && !Py_IsInitialized()) wait_for_the_end();
#ifdef __GLIBCXX__
    try {
        return take();
    } catch (const abi::__forced_unwind&) {
        wait_for_the_end();
    }
#else
    return take();
#endif
}

class WithoutGil {
  public:
    WithoutGil() {
        ends_python = !Py_IsInitialized();  // or this thread would not have the lock
        thread_ = PyEval_SaveThread();
    }
    ~WithoutGil() {
        take_unless_python_ends([this] { PyEval_RestoreThread(thread_); });
    }
    WithoutGil(const WithoutGil&) = delete;
    WithoutGil& operator=(const WithoutGil&) = delete;

  private:
    PyThreadState* thread_;
};

class WithGil {
  public:
    WithGil() : before_(take_unless_python_ends([] { return PyGILState_Ensure(); })) {}
    ~WithGil() { PyGILState_Release(before_); }
    WithGil(const WithGil&) = delete;
    WithGil& operator=(const WithGil&) = delete;

  private:
    const PyGILState_STATE before_;
};

}  // namespace nfd_fast::bindings
