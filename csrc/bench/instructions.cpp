// Small workloads whose instructions tools/instructions.py counts: one is named on the command
// line, runs once to settle what is chosen and allocated at first use, and once more in `counted`.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cpu/kernels.hpp"
#include "nfd_fast/activations.hpp"
#include "training/monitor.hpp"
#include "training/problem.hpp"

namespace {

using namespace nfd_fast;
using Workload = std::function<bool()>;  // whether it went well

class Uninterrupted final : public Monitor {
  public:
    Uninterrupted() : Monitor(1) {}

  protected:
    bool go_on(std::int64_t, std::int64_t) override { return true; }
};

constexpr std::int64_t kInputs = 8;

std::vector<float> normals(std::uint32_t column, std::int64_t count) {
    std::vector<float> numbers(static_cast<std::size_t>(count));
    kernels().float32.normal_neurons(noise_address(1, Stream::spare, 1), column, 0, count,
                                     numbers.data());
    return numbers;
}

// What a problem points to, with samples that come once each.
struct Training {
    Problem<float> problem{};
    std::vector<float> x, input, hidden, readout;
    std::vector<double> targets, losses;
    std::vector<std::int64_t> batches;
    std::uint64_t seed = 1;
    Divergence divergence{};

    Training(std::int64_t width, std::int64_t depth, std::int64_t batch, std::int64_t updates)
        : x(normals(0, batch * updates * kInputs)),
          targets(static_cast<std::size_t>(batch * updates), 1.0),
          losses(static_cast<std::size_t>(updates + 1)) {
        for (std::int64_t i = 0; i < batch * updates; ++i) batches.push_back(i);
        const double branch_factor = std::sqrt(1.0 / static_cast<double>(depth));
        problem.stack = {width,         depth, batch,
                         branch_factor, true,  static_cast<int>(Activation::tanh)};
        problem.inputs = kInputs;
        problem.outputs = 1;
        problem.loss = Loss::mse;
        problem.learning_rate = 0.1;
        problem.train_input = problem.train_hidden = problem.train_readout = true;
        problem.fine = 1;
        problem.x = x.data();
        problem.targets = targets.data();
        problem.batches = problem.last_batch = batches.data();
        problem.updates = updates;
        problem.seeds = &seed;
        problem.replicas = 1;
        problem.threads = 1;
        problem.record_every = 1;
        problem.tolerance = 3e-8;  // as conditional.py has it
        problem.records.losses = losses.data();
        problem.divergences = &divergence;
    }
    Training(const Training&) = delete;  // the problem points into it
    Training& operator=(const Training&) = delete;

    void store_weights() {
        const std::int64_t width = problem.stack.width;
        input = normals(1, width * kInputs);
        hidden = normals(2, problem.stack.depth * width * width);
        readout = normals(3, width);
        problem.given.input = input.data();
        problem.given.hidden = hidden.data();
        problem.given.readout = readout.data();
        problem.overwrite = true;
    }

    bool went_well() const {
        return divergence.quantity == Quantity::none && std::isfinite(losses.back());
    }
};

Workload dense() {
    // Each run goes on where the last one ended; two updates, so that one begins where one ends.
    const auto training = std::make_shared<Training>(256, 4, 4, 2);
    training->store_weights();
    return [training] {
        Uninterrupted monitor;
        train_dense(training->problem, monitor, nullptr, nullptr);
        return training->went_well();
    };
}

Workload conditional() {
    const auto training = std::make_shared<Training>(1024, 4, 4, 3);
    return [training] {
        Uninterrupted monitor;
        train_conditional(training->problem, monitor, nullptr, nullptr);
        return training->went_well();
    };
}

Workload normal() {
    return [] { return std::isfinite(normals(0, 1 << 18).back()); };
}

}  // namespace

// The name that the count begins and ends with.
extern "C" __attribute__((noinline)) bool counted(const Workload* workload) {
    return (*workload)();
}

int main(int argc, char** argv) {
    const std::map<std::string, Workload> workloads{
        {"normals", normal()}, {"dense", dense()}, {"conditional", conditional()}};
    const auto found = workloads.find(argc == 2 ? argv[1] : "");
    if (found == workloads.end()) {
        for (const auto& [name, workload] : workloads) std::puts(name.c_str());
        return argc == 1 ? 0 : 2;
    }
    return found->second() && counted(&found->second) ? 0 : 1;
}
