// The engines: networks trained from a description to its records.

#include <pybind11/native_enum.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>

#include "bindings/arrays.hpp"
#include "bindings/python_monitor.hpp"
#include "nfd_fast/activations.hpp"
#include "training/problem.hpp"

namespace nfd_fast::bindings {
namespace {

// One training problem as Python fills it in: sizes and switches first, then arrays. It keeps the
// arrays alive; the engine sees only pointers.
template <class T>
struct TrainingTask {
    Problem<T> problem{};
    Array<T> x;
    std::optional<Array<double>> targets;
    std::optional<Array<std::int64_t>> labels;
    Array<std::int64_t> batches, last_batch;
    Array<std::uint64_t> seeds;
    std::optional<Array<T>> input, hidden, readout, backward_hidden;
    std::unique_ptr<State> state;  // of the last run, if it was to be kept
};

template <class T>
TrainingTask<T> make_task(std::int64_t width, std::int64_t depth, double branch_factor, bool skip,
                          int activation, Loss loss, double learning_rate,
                          std::tuple<bool, bool, bool> train, bool decoupled, std::int64_t fine,
                          Array<T> x, std::optional<Array<double>> targets,
                          std::optional<Array<std::int64_t>> labels, std::int64_t outputs,
                          Array<std::int64_t> batches, Array<std::uint64_t> seeds,
                          std::optional<Array<T>> input, std::optional<Array<T>> hidden,
                          std::optional<Array<T>> readout, std::optional<Array<T>> backward_hidden,
                          bool overwrite, std::int64_t record_every, bool keep_adjoints,
                          bool keep_first_features, bool keep_coupling, double tolerance,
                          Array<std::int64_t> last_batch, std::int64_t first_update) {
    TrainingTask<T> task;
    const std::int64_t samples = x.shape(0), inputs = x.shape(1);
    require_shape("x", x, {samples, inputs});
    require_shape("batches", batches, {batches.shape(0), batches.shape(1)});
    require_shape("seeds", seeds, {seeds.size()});
    if (targets) require_shape("targets", *targets, {samples, outputs});
    if (labels) require_shape("labels", *labels, {samples});
    if (input) require_shape("input", *input, {width, inputs});
    if (hidden) require_shape("hidden", *hidden, {depth, width, width});
    if (readout) require_shape("readout", *readout, {outputs, width});
    if (backward_hidden) require_shape("backward_hidden", *backward_hidden, {depth, width, width});
    if (!(loss == Loss::mse ? targets.has_value() : labels.has_value())) {
        throw py::value_error("the loss needs its targets or labels");
    }
    const auto within = [](const Array<std::int64_t>& indices, std::int64_t bound) {
        return std::all_of(indices.data(), indices.data() + indices.size(),
                           [bound](std::int64_t i) { return 0 <= i && i < bound; });
    };
    require_shape("last_batch", last_batch, {batches.shape(1)});
    if (record_every < 1 || depth % record_every != 0) {
        throw py::value_error("record_every must divide the depth");
    }
    if (first_update < 0 || !within(batches, samples) || !within(last_batch, samples) ||
        (labels && !within(*labels, outputs)) || activation < 0 || activation >= activation_count) {
        throw py::value_error("batches, labels and activation must be in range");
    }
    task.x = std::move(x);
    task.targets = std::move(targets);
    task.labels = std::move(labels);
    task.batches = std::move(batches);
    task.last_batch = std::move(last_batch);
    task.seeds = std::move(seeds);
    task.input = std::move(input);
    task.hidden = std::move(hidden);
    task.readout = std::move(readout);
    task.backward_hidden = std::move(backward_hidden);

    Problem<T>& p = task.problem;
    p.stack = {width, depth, task.batches.shape(1), branch_factor, skip, activation};
    p.inputs = inputs;
    p.outputs = outputs;
    p.loss = loss;
    p.learning_rate = learning_rate;
    std::tie(p.train_input, p.train_hidden, p.train_readout) = train;
    p.decoupled = decoupled;
    p.fine = fine;
    p.x = task.x.data();
    p.targets = task.targets ? task.targets->data() : nullptr;
    p.labels = task.labels ? task.labels->data() : nullptr;
    p.batches = task.batches.data();
    p.updates = task.batches.shape(0);
    p.last_batch = task.last_batch.data();
    p.first_update = first_update;
    p.seeds = task.seeds.data();
    p.replicas = task.seeds.size();
    p.overwrite = overwrite;
    p.record_every = record_every;
    p.keep_adjoints = keep_adjoints;
    p.keep_first_features = keep_first_features;
    p.keep_coupling = keep_coupling;
    p.tolerance = tolerance;
    // Only written through when `overwrite` is set, and then NumPy says whether they may be.
    const auto pointer = [overwrite](std::optional<Array<T>>& array) -> T* {
        if (!array) return nullptr;
        return overwrite ? array->mutable_data() : const_cast<T*>(array->data());
    };
    p.given = {pointer(task.input), pointer(task.hidden), pointer(task.readout),
               pointer(task.backward_hidden)};
    return task;
}

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
        if (count == 0) return;
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
        const py::gil_scoped_acquire gil;
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
        if (count == 0) return;
        auto found = taken_.find(name);
        if (found == taken_.end()) {
            const py::gil_scoped_acquire gil;
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

enum class Engine : int { dense, conditional };

// Runs the task; `records` maps observables to the arrays they are written to, a leading replica
// axis on each. Returns (update, layer, quantity) per replica; quantity 0 for one that went well.
template <class T>
Array<std::int64_t> run_task(TrainingTask<T>& task, Engine engine, int threads,
                             bool replicas_in_parallel, const py::dict& records,
                             py::object progress, bool keep_state, std::optional<py::dict> state) {
    Problem<T>& p = task.problem;
    const std::int64_t rows = p.updates + 1, layers = p.stack.depth + 1, batch = p.stack.batch;
    const std::int64_t recorded = p.stack.depth / p.record_every + 1;
    const auto record = [&](const char* name, std::initializer_list<std::int64_t> shape) {
        if (!records.contains(name)) return static_cast<double*>(nullptr);
        const py::object given = records[name];
        // Checked rather than converted: a copy would be filled and thrown away.
        if (!py::isinstance<Array<double>>(given)) {
            throw py::type_error(std::string(name) + " must be a C-contiguous float64 array");
        }
        auto array = py::reinterpret_borrow<Array<double>>(given);
        require_shape(name, array, shape);
        return array.mutable_data();
    };
    p.records.outputs = record("outputs", {p.replicas, rows, batch, p.outputs});
    p.records.losses = record("losses", {p.replicas, rows});
    p.records.features = record("features", {p.replicas, rows, recorded, batch, p.stack.width});
    p.records.adjoints =
        record("adjoints", {p.replicas, p.updates, recorded, batch, p.stack.width});
    p.records.feature_kernels = record("feature_kernels", {p.replicas, rows, layers, batch, batch});
    p.records.activation_kernels =
        record("activation_kernels", {p.replicas, rows, p.stack.depth, batch, batch});
    p.records.adjoint_kernels =
        record("adjoint_kernels", {p.replicas, p.updates, layers, batch, batch});
    p.records.feature_movement = record("feature_movement", {p.replicas, layers});
    p.records.feature_ranks = record("feature_ranks", {p.replicas, p.updates, p.stack.depth});
    p.records.adjoint_ranks = record("adjoint_ranks", {p.replicas, p.updates, p.stack.depth});
    p.records.coupling_per_layer = record("coupling_per_layer", {p.replicas, rows, p.stack.depth});
    p.records.coupling_accumulated = record("coupling_accumulated", {p.replicas, rows});
    p.records.backward_coupling_per_layer =
        record("backward_coupling_per_layer", {p.replicas, p.updates, p.stack.depth});
    p.records.backward_coupling_accumulated =
        record("backward_coupling_accumulated", {p.replicas, p.updates});
    const bool coupling = p.records.coupling_per_layer || p.records.coupling_accumulated ||
                          p.records.backward_coupling_per_layer ||
                          p.records.backward_coupling_accumulated;
    const bool all_adjoints =
        p.records.adjoints || (p.records.adjoint_kernels && engine == Engine::dense);
    if ((all_adjoints && !p.keep_adjoints) || (coupling && !p.keep_coupling) ||
        (p.records.feature_movement && !p.keep_first_features)) {
        throw py::value_error("a record needs memory that the task was not told to keep");
    }
    p.threads = threads;
    p.replicas_in_parallel = replicas_in_parallel;

    Array<std::int64_t> divergences({p.replicas, std::int64_t{3}});
    static_assert(sizeof(Divergence) == 3 * sizeof(std::int64_t), "rows of the array");
    p.divergences = reinterpret_cast<Divergence*>(divergences.mutable_data());
    std::fill_n(divergences.mutable_data(), divergences.size(), 0);

    if ((keep_state || state) && (p.replicas != 1 || replicas_in_parallel)) {
        throw py::value_error("only a single run has a state");
    }
    if ((p.first_update > 0) != state.has_value()) {
        throw py::value_error("a continued run needs a state, and only that");
    }
    PythonMonitor monitor(p.replicas * rows, std::move(progress));
    std::optional<StateReader> reader;
    if (state) reader.emplace(*state);
    run_monitored(monitor, [&] {
        (engine == Engine::dense ? train_dense<T>
                                 : train_conditional<T>)(p, monitor, reader ? &*reader : nullptr,
                                                         keep_state ? &task.state : nullptr);
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
             py::arg("tolerance"), py::arg("last_batch").noconvert(), py::arg("first_update"))
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
             py::arg("keep_state"), py::arg("state"))
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
