// The engines on a device.

#include <pybind11/native_enum.h>

#include "bindings/python_monitor.hpp"
#include "bindings/training_task.hpp"
#include "cuda/engine.hpp"

namespace nfd_fast::bindings {
namespace {

// Runs the task on the current device and returns its divergences, see record_into(). What the
// hidden layers take there is added to `milliseconds` (updates + 1, 2): forward, backward.
template <class T>
Array<std::int64_t> run(TrainingTask<T>& task, Engine engine, const py::dict& records,
                        py::object progress, std::optional<Array<double>> milliseconds) {
    Problem<T>& problem = task.problem;
    if (problem.first_update > 0) throw py::value_error("a device can't continue a run");
    if (milliseconds) require_shape("milliseconds", *milliseconds, {problem.updates + 1, 2});
    problem.pass_milliseconds = data_or_null(milliseconds);
    Array<std::int64_t> divergences = record_into(records, engine, task);
    PythonMonitor monitor(problem.replicas * (problem.updates + 1), std::move(progress));
    run_monitored(monitor, [&] {
        (engine == Engine::dense ? cuda::train_dense<T> : cuda::train_conditional<T>)(problem,
                                                                                      monitor);
    });
    return divergences;
}

template <class T>
void register_typed(py::module_& module) {
    module.def("run", &run<T>, py::arg("task"), py::arg("engine"), py::arg("records"),
               py::arg("progress"), py::arg("milliseconds").noconvert() = py::none());
    module.def(
        "bytes",
        [](const TrainingTask<T>& task, Engine engine) {
            return engine == Engine::dense ? cuda::dense_bytes(task.problem)
                                           : cuda::conditional_bytes(task.problem);
        },
        py::arg("task"), py::arg("engine"),
        "Bytes of the device's memory that run() takes at least: one replica's.");
}

}  // namespace

void register_device_training(py::module_& module) {
    register_typed<float>(module);
    register_typed<double>(module);
}

}  // namespace nfd_fast::bindings
