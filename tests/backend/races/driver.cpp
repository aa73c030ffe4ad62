// Trains small networks on an emulated device, for ThreadSanitizer (test_cuda_races.py).
//
//     driver seed blocks bytes run ...    seed of the order of turns, blocks that run at the same
//                                         time, bytes of their shared memory
//
// A run is key=value,... over those of `defaults`. Prints the last loss of each.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/emulation_contexts.hpp"
#include "cuda/engine.hpp"

namespace {

using namespace nfd_fast;
namespace emulation = cuda::emulation;

struct Quiet : Monitor {
    using Monitor::Monitor;
    bool go_on(std::int64_t, std::int64_t) override { return true; }
};

using Run = std::map<std::string, double>;

const Run defaults = {
    {"width", 100},  {"depth", 2},     {"batch", 3},      {"updates", 2},
    {"replicas", 1}, {"decoupled", 0}, {"coupling", 0},   {"fine", 1},
    {"hidden", 1},   {"single", 0},    {"neighbours", 0},  // how far apart samples of a batch are,
                                                           // if they are not independent
    {"dense", 0},
};

Run parse(const std::string& text) {
    Run run = defaults;
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t end = std::min(text.find(',', at), text.size());
        const std::string item = text.substr(at, end - at);
        const std::size_t equals = item.find('=');
        run.at(item.substr(0, equals)) = std::stod(item.substr(equals + 1));
        at = end + 1;
    }
    return run;
}

template <class T>
double last_loss(const Run& run) {
    const auto size = [&](const char* key) { return static_cast<std::int64_t>(run.at(key)); };
    const std::int64_t batch = size("batch"), depth = size("depth"), width = size("width");
    const std::int64_t updates = size("updates"), replicas = size("replicas"), rows = updates + 1;
    const std::int64_t inputs = 5, outputs = 2, samples = batch * rows;
    const bool dense = size("dense") != 0;

    std::mt19937_64 random(7);
    std::normal_distribution<double> normal;
    const double apart = run.at("neighbours");
    const std::int64_t independent = apart > 0 ? std::max<std::int64_t>(1, batch / 2) : samples;
    std::vector<T> x(static_cast<std::size_t>(samples * inputs));
    for (std::int64_t i = 0; i < samples * inputs; ++i) {
        const std::int64_t first = i % (independent * inputs);
        x[i] = static_cast<T>(i == first ? normal(random) : x[first] + apart * normal(random));
    }
    std::vector<double> targets(static_cast<std::size_t>(samples * outputs));
    for (double& y : targets) y = normal(random);
    std::vector<std::int64_t> samples_of(static_cast<std::size_t>(samples));
    for (std::int64_t i = 0; i < samples; ++i) samples_of[i] = i;
    std::vector<std::uint64_t> seeds;
    for (std::int64_t r = 0; r < replicas; ++r) seeds.push_back(static_cast<std::uint64_t>(r));

    Problem<T> p{};
    p.stack = {width, depth, batch, 1 / std::sqrt(static_cast<double>(depth)), true, 3};
    p.inputs = inputs, p.outputs = outputs;
    p.loss = Loss::mse;
    p.learning_rate = 0.1;
    p.train_input = p.train_readout = true;
    p.train_hidden = size("hidden") != 0;
    p.decoupled = size("decoupled") != 0;
    p.fine = size("fine");
    p.tolerance = sizeof(T) == 8 ? 1e-10 : 3e-8;
    p.x = x.data(), p.targets = targets.data();
    p.batches = samples_of.data(), p.updates = updates;
    p.last_batch = samples_of.data() + updates * batch;
    p.seeds = seeds.data(), p.replicas = replicas;
    p.record_every = 1;
    p.keep_adjoints = dense;
    p.keep_coupling = size("coupling") != 0;

    std::vector<std::vector<double>> arrays;
    const auto record = [&](double*& member, bool wanted, std::int64_t numbers) {
        if (!wanted) return;
        arrays.emplace_back(static_cast<std::size_t>(replicas * numbers));
        member = arrays.back().data();
    };
    Records& to = p.records;
    record(to.losses, true, rows);
    record(to.features, true, rows * (depth + 1) * batch * width);
    record(to.feature_kernels, true, rows * (depth + 1) * batch * batch);
    record(to.activation_kernels, true, rows * depth * batch * batch);
    record(to.adjoint_kernels, true, updates * (depth + 1) * batch * batch);
    record(to.feature_ranks, !dense, updates * depth);
    record(to.adjoint_ranks, !dense, updates * depth);
    record(to.coupling_per_layer, p.keep_coupling, rows * depth);
    record(to.coupling_accumulated, p.keep_coupling, rows);
    record(to.backward_coupling_per_layer, p.keep_coupling, updates * depth);
    record(to.backward_coupling_accumulated, p.keep_coupling, updates);
    std::vector<Divergence> divergences(seeds.size(), Divergence{0, 0, Quantity::none});
    p.divergences = divergences.data();

    Quiet monitor(replicas * rows);
    (dense ? cuda::train_dense<T> : cuda::train_conditional<T>)(p, monitor);
    const double loss = arrays.front()[static_cast<std::size_t>(updates)];
    if (!std::isfinite(loss)) throw std::runtime_error("the loss is not finite");
    return loss;
}

}  // namespace

int main(int count, char** arguments) {
    try {
        emulation::schedule = std::stoull(arguments[1]);
        emulation::kResidentBlocks = std::stoi(arguments[2]);
        emulation::kSharedBytes = std::stoll(arguments[3]);
        for (int i = 4; i < count; ++i) {
            const Run run = parse(arguments[i]);
            const double loss =
                run.at("single") != 0 ? last_loss<float>(run) : last_loss<double>(run);
            std::printf("%s %.9g\n", arguments[i], loss);
            std::fflush(stdout);
        }
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 3;
    }
    return 0;
}
