// A training problem as Python fills it in, for the modules of every device.
#pragma once

#include <pybind11/stl.h>

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "bindings/arrays.hpp"
#include "nfd_fast/activations.hpp"
#include "training/problem.hpp"

namespace nfd_fast::bindings {

enum class Engine : int { dense, conditional };

// Sizes and switches first, then arrays. It keeps the arrays alive; the engine sees only pointers.
// The module _core registers it, others take it from there.
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
TrainingTask<T> make_task(
    std::int64_t width, std::int64_t depth, double branch_factor, bool skip, int activation,
    Loss loss, double learning_rate, std::tuple<bool, bool, bool> train, bool decoupled,
    std::int64_t fine, Array<T> x, std::optional<Array<double>> targets,
    std::optional<Array<std::int64_t>> labels, std::int64_t outputs, Array<std::int64_t> batches,
    Array<std::uint64_t> seeds, std::optional<Array<T>> input, std::optional<Array<T>> hidden,
    std::optional<Array<T>> readout, std::optional<Array<T>> backward_hidden, bool overwrite,
    std::int64_t record_every, bool keep_adjoints, bool keep_first_features, bool keep_coupling,
    double tolerance, Array<std::int64_t> last_batch, std::int64_t first_update, bool keep_state) {
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
    p.keep_state = keep_state;
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

// Has the task record into the arrays that `records` maps observables to, a leading replica axis on
// each, and returns where it will write (update, layer, quantity) per replica; quantity 0 for one
// that went well.
template <class T>
Array<std::int64_t> record_into(const py::dict& records, Engine engine, TrainingTask<T>& task) {
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

    Array<std::int64_t> divergences({p.replicas, std::int64_t{3}});
    static_assert(sizeof(Divergence) == 3 * sizeof(std::int64_t), "rows of the array");
    p.divergences = reinterpret_cast<Divergence*>(divergences.mutable_data());
    std::fill_n(divergences.mutable_data(), divergences.size(), 0);

    return divergences;
}

}  // namespace nfd_fast::bindings
