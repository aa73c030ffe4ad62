// The engines: networks trained from a description to its records.

#include <pybind11/native_enum.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <string>
#include <type_traits>

#include "bindings/gil.hpp"
#include "bindings/python_monitor.hpp"
#include "bindings/training_task.hpp"

namespace nfd_fast::bindings {
namespace {

// Copies a state into NumPy arrays: one pass to count, one to fill.
class StateWriter final : public StateStream {
  public:
    void numbers(const char* name, float* data, std::int64_t count) override {
        write(name, data, count);
    }
    void numbers(const char* name, double* data, std::int64_t count) override {
        write(name, data, count);
    }
    void numbers(const char* name, std::int64_t* data, std::int64_t count) override {
        write(name, data, count);
    }

    py::dict write(State& state) {
        state.transfer(*this);
        filling_ = true;
        state.transfer(*this);
        py::dict arrays;
        for (auto& [name, entry] : entries_) arrays[py::str(name)] = entry.array;
        return arrays;
    }

  private:
    struct Entry {
        std::int64_t count = 0, filled = 0;
        py::array array;
        void* data = nullptr;
    };

    template <class Number>
    void write(const char* name, const Number* data, std::int64_t count) {
        // Also one without numbers: that it was kept is what a later run must know.
        Entry& entry = entries_[name];
        if (!filling_) {
            entry.count += count;
            return;
        }
        if (!entry.data) {
            Array<Number> array(entry.count);
            entry.data = array.mutable_data();
            entry.array = std::move(array);
        }
        std::copy_n(data, count, static_cast<Number*>(entry.data) + entry.filled);
        entry.filled += count;
    }

    std::map<std::string, Entry> entries_;
    bool filling_ = false;
};

// Fills a state from NumPy arrays, which must hold exactly what it asks for.
class StateReader final : public StateStream {
  public:
    explicit StateReader(py::dict arrays) : arrays_(std::move(arrays)) {}

    void numbers(const char* name, float* data, std::int64_t count) override {
        read(name, data, count);
    }
    void numbers(const char* name, double* data, std::int64_t count) override {
        read(name, data, count);
    }
    void numbers(const char* name, std::int64_t* data, std::int64_t count) override {
        read(name, data, count);
    }
    void finish() override {
        const WithGil with_gil;
        for (const auto& item : arrays_) {
            const auto name = item.first.cast<std::string>();
            const auto found = taken_.find(name);
            if (found == taken_.end()) throw std::invalid_argument(name + " does not belong to it");
            if (found->second.left > 0) throw std::invalid_argument(name + " is too long");
        }
    }

  private:
    template <class Number>
    void read(const char* name, Number* data, std::int64_t count) {
        auto found = taken_.find(name);
        if (found == taken_.end()) {
            const WithGil with_gil;
            if (count == 0 && !arrays_.contains(name)) return;
            if (!arrays_.contains(name) || !py::isinstance<Array<Number>>(arrays_[name])) {
                throw std::invalid_argument(std::string(name) + " is missing or of another type");
            }
            const auto array = py::reinterpret_borrow<Array<Number>>(arrays_[name]);
            found = taken_.emplace(name, Run{array.data(), array.size()}).first;
        }
        Run& run = found->second;
        if (run.left < count) throw std::invalid_argument(std::string(name) + " is too short");
        const auto* from = static_cast<const Number*>(run.next);
        if constexpr (std::is_floating_point_v<Number>) {
            if (!std::all_of(from, from + count, [](Number x) { return std::isfinite(x); })) {
                throw std::invalid_argument(std::string(name) + " has entries that are not finite");
            }
        }
        std::copy_n(from, count, data);
        run.next = from + count;
        run.left -= count;
    }

    struct Run {
        const void* next;
        std::int64_t left;
    };
    py::dict arrays_;
    std::map<std::string, Run> taken_;
};

// Runs the task and returns its divergences, see record_into().
template <class T>
Array<std::int64_t> run_task(TrainingTask<T>& task, Engine engine, int threads,
                             bool replicas_in_parallel, const py::dict& records,
                             py::object progress, std::optional<py::dict> state) {
    Problem<T>& p = task.problem;
    Array<std::int64_t> divergences = record_into(records, engine, task);
    p.threads = threads;
    p.replicas_in_parallel = replicas_in_parallel;
    if ((p.keep_state || state) && (p.replicas != 1 || replicas_in_parallel)) {
        throw py::value_error("only a single run has a state");
    }
    if ((p.first_update > 0) != state.has_value()) {
        throw py::value_error("a continued run needs a state, and only that");
    }
    PythonMonitor monitor(p.replicas * (p.updates + 1), std::move(progress));
    std::optional<StateReader> reader;
    if (state) reader.emplace(*state);
    run_monitored(monitor, [&] {
        (engine == Engine::dense
             ? train_dense<T>
             : train_conditional<T>)(p, monitor, reader ? &*reader : nullptr, &task.state);
    });
    return divergences;
}

template <class T>
void register_typed(py::module_& module, const char* name) {
    py::class_<TrainingTask<T>>(module, name)
        .def(py::init(&make_task<T>), py::kw_only(), py::arg("width"), py::arg("depth"),
             py::arg("branch_factor"), py::arg("skip"), py::arg("activation"), py::arg("loss"),
             py::arg("learning_rate"), py::arg("train"), py::arg("decoupled"), py::arg("fine"),
             py::arg("x").noconvert(), py::arg("targets").noconvert(),
             py::arg("labels").noconvert(), py::arg("outputs"), py::arg("batches").noconvert(),
             py::arg("seeds").noconvert(), py::arg("input").noconvert(),
             py::arg("hidden").noconvert(), py::arg("readout").noconvert(),
             py::arg("backward_hidden").noconvert(), py::arg("overwrite"), py::arg("record_every"),
             py::arg("keep_adjoints"), py::arg("keep_first_features"), py::arg("keep_coupling"),
             py::arg("tolerance"), py::arg("last_batch").noconvert(), py::arg("first_update"),
             py::arg("keep_state"))
        .def(
            "bytes",
            [](const TrainingTask<T>& task, Engine engine, int threads, bool replicas_in_parallel) {
                Problem<T> p = task.problem;
                p.threads = threads;
                p.replicas_in_parallel = replicas_in_parallel;
                return engine == Engine::dense ? dense_bytes(p) : conditional_bytes(p);
            },
            py::arg("engine"), py::arg("threads"), py::arg("replicas_in_parallel"),
            "Bytes that run() allocates besides the records.")
        .def("run", &run_task<T>, py::arg("engine"), py::arg("threads"),
             py::arg("replicas_in_parallel"), py::arg("records"), py::arg("progress"),
             py::arg("state"))
        .def("state", [](TrainingTask<T>& task) {
            if (!task.state) throw py::value_error("no state was kept");
            return StateWriter().write(*task.state);
        });
}

}  // namespace

void register_training(py::module_& module) {
    py::list names;
    py::native_enum<Loss> loss(module, "Loss", "enum.IntEnum");
#define NFD_FAST_LOSS_NAME(name) \
    names.append(#name);         \
    loss.value(#name, Loss::name);
    NFD_FAST_LOSSES(NFD_FAST_LOSS_NAME)
#undef NFD_FAST_LOSS_NAME
    loss.finalize();
    module.attr("LOSSES") = py::tuple(names);
    py::native_enum<Engine>(module, "Engine", "enum.IntEnum")
        .value("dense", Engine::dense)
        .value("conditional", Engine::conditional)
        .finalize();
    register_typed<float>(module, "TrainingTask32");
    register_typed<double>(module, "TrainingTask64");
}

}  // namespace nfd_fast::bindings
