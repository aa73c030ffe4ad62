// What the engines share on a device: waves of replicas, their passes, and the way of the records
// to the host. An engine brings the hidden layers.
//
// `Hidden<T>` provides
//     static int most_replicas(problem)         how many at once make sense
//     static Hidden lay_out(problem, arena, replicas)    its arrays on the device, cut from the
//                                               arena; their addresses mean nothing on the host
//     void initialize(problem, wave)            before the first pass of each wave
//     void forward(problem, wave, k)            features 1 ... L
//     void backward(problem, wave, k, step)     adjoints L-1 ... 0, then the update of its weights
//                                               by step = eta beta m, or none if that is 0
//     void finish(problem, wave)                after the last pass of each wave
//     static constexpr bool records_kernels     whether it writes the activation kernels, and the
//                                               adjoint kernels of layers 1 ... L, by itself
// All of them enqueue on wave.stream and return at once. Whether a replica has diverged is known to
// the device alone; the host learns it with the records, a pass or two later.
#pragma once

#include <algorithm>
#include <chrono>
#include <optional>
#include <thread>
#include <vector>

#include "cuda/device.hpp"
#include "cuda/ends.hpp"
#include "cuda/network.hpp"
#include "cuda/noise.hpp"
#include "cuda/records.hpp"
#include "cuda/wave.hpp"
#include "training/arena.hpp"
#include "training/problem.hpp"

namespace nfd_fast::cuda {

using RecordsMember = double* Records::*;

// A record, and the passes that add a row to it: `rows` of them from pass `first` on.
struct RecordedField {
    RecordsMember member;
    std::int64_t size;  // of one replica's row
    std::int64_t first, rows;
    bool backward;
};

template <class T>
std::vector<RecordedField> recorded_fields(const Problem<T>& p) {
    const std::int64_t depth = p.stack.depth, layers = depth + 1, updates = p.updates;
    const std::int64_t square = p.stack.batch * p.stack.batch;
    return {
        {&Records::outputs, p.stack.batch * p.outputs, 0, updates + 1, false},
        {&Records::losses, 1, 0, updates + 1, false},
        {&Records::feature_kernels, layers * square, 0, updates + 1, false},
        {&Records::activation_kernels, depth * square, 0, updates + 1, false},
        {&Records::coupling_per_layer, depth, 0, updates + 1, false},
        {&Records::coupling_accumulated, 1, 0, updates + 1, false},
        {&Records::feature_ranks, depth, 0, updates, false},
        {&Records::feature_movement, layers, updates, 1, false},
        {&Records::adjoint_kernels, layers * square, 0, updates, true},
        {&Records::adjoint_ranks, depth, 0, updates, true},
        {&Records::backward_coupling_per_layer, depth, 0, updates, true},
        {&Records::backward_coupling_accumulated, 1, 0, updates, true},
    };
}

// The rows that one pass adds, for all replicas of a wave: the same places on device and host.
struct PassRecord {
    RecordedRow row;
    Divergence* divergences;
};

template <class T>
void lay_out(const Problem<T>& p, Arena& arena, int replicas, PassRecord& record) {
    arena.take(record.divergences, replicas);
    for (const RecordedField& field : recorded_fields(p)) {
        // The readout writes these whether they are wanted or not.
        const bool always = field.member == &Records::outputs || field.member == &Records::losses;
        const bool wanted = always || p.records.*field.member;
        arena.take(record.row.*field.member,
                   wanted ? static_cast<double>(field.size) * replicas : 0);
    }
}

template <class T>
void lay_out(const Problem<T>& p, Arena& arena, int replicas, Network<T>& net) {
    const LayerStack& s = p.stack;
    const double count = replicas, n = static_cast<double>(s.width);
    const double layers = static_cast<double>(s.depth + 1);
    const double batch = static_cast<double>(s.batch), outputs = static_cast<double>(p.outputs);
    const double layer = batch * n;
    arena.take(net.seeds, count);
    arena.take(net.input, count * n * static_cast<double>(p.inputs));
    arena.take(net.readout, count * outputs * n);
    arena.take(net.features, count * layers * layer);
    arena.take(net.first_features, p.keep_first_features ? count * layers * layer : 0);
    arena.take(net.adjoints, count * static_cast<double>(stored_adjoints(p)) * layer);
    arena.take(net.output_sums,
               count * batch * outputs * static_cast<double>(readout_chunks(s.width)));
    arena.take(net.chi, count * batch * outputs);
    arena.take(net.sample_weights, count * batch);
    const bool grams =
        p.records.feature_kernels || p.records.activation_kernels || p.records.adjoint_kernels;
    const double chunks = static_cast<double>(gram_chunks(s));
    arena.take(net.gram_sums, grams && chunks > 1 ? count * layers * chunks * batch * batch : 0);
    arena.take(net.bad_step, count);
}

// All device memory of a wave.
template <class T, template <class> class Hidden>
struct WaveMemory {
    Network<T> network;
    PassRecord record;
    std::size_t record_bytes;
    Hidden<T> hidden;
};

// Samples up to the last that a batch asks for.
template <class T>
std::int64_t samples_used(const Problem<T>& p) {
    const std::int64_t last = *std::max_element(p.last_batch, p.last_batch + p.stack.batch);
    const std::int64_t* end = p.batches + p.updates * p.stack.batch;
    return 1 + (p.batches == end ? last : std::max(last, *std::max_element(p.batches, end)));
}

template <class T, template <class> class Hidden>
double lay_out(const Problem<T>& p, unsigned char* base, int replicas, WaveMemory<T, Hidden>& w) {
    Arena arena(base);
    const double samples = static_cast<double>(samples_used(p));
    arena.take(w.network.x, samples * static_cast<double>(p.inputs));
    arena.take(w.network.targets, p.targets ? samples * static_cast<double>(p.outputs) : 0);
    arena.take(w.network.labels, p.labels ? samples : 0);
    arena.take(w.network.batches, static_cast<double>((p.updates + 1) * p.stack.batch));
    lay_out(p, arena, replicas, w.network);
    const double before = arena.used();
    lay_out(p, arena, replicas, w.record);
    w.record_bytes = static_cast<std::size_t>(arena.used() - before);
    w.network.outputs = w.record.row.outputs;
    w.network.losses = w.record.row.losses;
    w.network.divergences = w.record.divergences;
    w.hidden = Hidden<T>::lay_out(p, arena, replicas);
    return arena.used();
}

template <class T, template <class> class Hidden>
double engine_bytes(const Problem<T>& problem) {
    WaveMemory<T, Hidden> memory{};
    return lay_out<T, Hidden>(problem, nullptr, 1, memory);
}

// How many replicas fit the device at once, and about as many in every wave.
template <class T, template <class> class Hidden>
int wave_size(const Problem<T>& p) {
    constexpr double kShare = 0.95;        // of the memory that is free
    constexpr std::int64_t kMost = 65535;  // blocks of a grid in its second dimension
    std::size_t available = 0, total = 0;
    check(cudaMemGetInfo(&available, &total), "a question about the device");
    WaveMemory<T, Hidden> memory{};
    const double one = lay_out<T, Hidden>(p, nullptr, 1, memory);
    const double each = lay_out<T, Hidden>(p, nullptr, 2, memory) - one;
    const double fit = 1 + (kShare * static_cast<double>(available) - one) / each;
    std::int64_t most = std::min<std::int64_t>({p.replicas, Hidden<T>::most_replicas(p), kMost});
    if (fit < static_cast<double>(most)) most = static_cast<std::int64_t>(std::max(1.0, fit));
    const std::int64_t waves = (p.replicas + most - 1) / most;
    return static_cast<int>((p.replicas + waves - 1) / waves);
}

template <class T, template <class> class Hidden>
class Replicas {
  public:
    // Takes all memory.
    Replicas(const Problem<T>& problem, Monitor& monitor)
        : p_(problem),
          monitor_(monitor),
          fields_(recorded_fields(problem)),
          most_(wave_size<T, Hidden>(problem)),
          memory_(take_device(lay_out<T, Hidden>(problem, nullptr, most_, w_))),
          halt_(take_pinned<unsigned>(1)) {
        lay_out<T, Hidden>(problem, memory_.get(), most_, w_);
        for (Slot& slot : slots_) {
            slot.memory =
                take_pinned<unsigned char>(static_cast<std::size_t>(lay_out_slot(nullptr, slot)));
            lay_out_slot(slot.memory.get(), slot);
            if (p_.pass_milliseconds) {
                slot.forward.emplace();
                slot.backward.emplace();
            }
        }
        *halt_ = 0;
    }

    // Nothing is taken from the device that is still at work.
    ~Replicas() {
        cudaStreamSynchronize(stream_.get());
        cudaStreamSynchronize(way_out_.get());
        w_.hidden = Hidden<T>{};
    }
    Replicas(const Replicas&) = delete;
    Replicas& operator=(const Replicas&) = delete;

    void train() {
        const std::int64_t samples = samples_used(p_), indices = p_.updates * p_.stack.batch;
        copy(w_.network.x, p_.x, samples * p_.inputs);
        if (p_.targets) copy(w_.network.targets, p_.targets, samples * p_.outputs);
        if (p_.labels) copy(w_.network.labels, p_.labels, samples);
        copy(w_.network.batches, p_.batches, indices);
        copy(w_.network.batches + indices, p_.last_batch, p_.stack.batch);
        for (std::int64_t first = 0; first < p_.replicas && !monitor_.stopped(); first += most_) {
            train_wave(first, static_cast<int>(std::min<std::int64_t>(most_, p_.replicas - first)));
        }
    }

  private:
    // Where the records of a pass lie on the host until they are the caller's. With two of them the
    // device works on one pass while the host waits for, and puts away, the one before.
    static constexpr int kSlots = 2;
    struct Slot {
        Pinned<unsigned char> memory;
        PassRecord record;
        T* features;  // (count, recorded layers, B, n)
        T* adjoints;
        Event done, copied;
        std::optional<Stopwatch> forward, backward;  // of the hidden layers, if asked for
    };

    std::int64_t recorded_layers() const { return p_.stack.depth / p_.record_every + 1; }
    std::int64_t recorded_size() const { return recorded_layers() * p_.stack.layer_size(); }

    double lay_out_slot(unsigned char* base, Slot& slot) const {
        Arena arena(base);
        lay_out(p_, arena, most_, slot.record);
        const double states = static_cast<double>(most_) * static_cast<double>(recorded_size());
        arena.take(slot.features, p_.records.features ? states : 0);
        arena.take(slot.adjoints, p_.records.adjoints ? states : 0);
        return arena.used();
    }

    // Between host and device, either way.
    template <class Element>
    void copy(Element* to, const Element* from, std::int64_t count) const {
        check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(count) * sizeof(Element),
                              cudaMemcpyDefault, stream_.get()),
              "a copy");
    }

    void train_wave(std::int64_t first, int count) {
        const Network<T>& net = w_.network;
        forward_ = Wave<T>{};
        forward_.first = first;
        forward_.count = count;
        forward_.stream = stream_.get();
        forward_.seeds = net.seeds;
        forward_.features = net.features;
        forward_.adjoints = net.adjoints;
        forward_.weights = net.sample_weights;
        forward_.bad_step = net.bad_step;
        forward_.halt = halt_.get();
        backward_ = forward_;
        const RecordedRow& row = w_.record.row;
        rest_ = row;
        if (Hidden<T>::records_kernels) {
            rest_.activation_kernels = nullptr;
            forward_.activation_kernels = row.activation_kernels;
            backward_.adjoint_kernels = row.adjoint_kernels;
        }
        forward_.ranks = row.feature_ranks;
        forward_.coupling_per_layer = row.coupling_per_layer;
        forward_.coupling_accumulated = row.coupling_accumulated;
        backward_.ranks = row.adjoint_ranks;
        backward_.coupling_per_layer = row.backward_coupling_per_layer;
        backward_.coupling_accumulated = row.backward_coupling_accumulated;

        initialize();
        living_ = count;
        std::int64_t begun = 0, done = 0;
        while (living_ > 0 && done <= p_.updates && !monitor_.stopped()) {
            if (begun <= p_.updates && begun - done < kSlots) {
                pass(begun++);
            } else {
                put_away(done++);
            }
        }
        if (monitor_.stopped()) *static_cast<volatile unsigned*>(halt_.get()) = 1;
        w_.hidden.finish(p_, forward_);
        if (p_.overwrite && p_.train_input) copy(p_.given.input, net.input, input_size());
        if (p_.overwrite && p_.train_readout) copy(p_.given.readout, net.readout, readout_size());
        stream_.wait();
        way_out_.wait();
    }

    std::int64_t input_size() const { return p_.stack.width * p_.inputs; }
    std::int64_t readout_size() const { return p_.outputs * p_.stack.width; }

    void initialize() {
        const Network<T>& net = w_.network;
        const int count = forward_.count;
        copy(net.seeds, p_.seeds + forward_.first, count);
        // What nobody writes stays not a number.
        check(cudaMemsetAsync(w_.record.divergences, 0xFF, w_.record_bytes, stream_.get()),
              "clearing memory");
        start(net, count, stream_.get());
        if (p_.given.input) {
            copy(net.input, p_.given.input, input_size());
            copy(net.readout, p_.given.readout, readout_size());
        } else {
            fill_matrices(net.seeds, count, nfd_fast::Stream::input, 1, p_.stack.width, p_.inputs,
                          1, net.input, stream_.get());
            fill_vectors(net.seeds, count, nfd_fast::Stream::readout, p_.outputs, p_.stack.width,
                         net.readout, stream_.get());
        }
        w_.hidden.initialize(p_, forward_);
    }

    // Enqueues pass k and the way of its records to the host.
    void pass(std::int64_t k) {
        const Network<T>& net = w_.network;
        const int count = forward_.count;
        Slot& slot = slots_[k % kSlots];
        if (k == p_.updates) forward_.ranks = nullptr;
        embed(p_, net, count, k, stream_.get());
        if (k > 0) slots_[(k - 1) % kSlots].copied.hold(stream_.get());
        timed(slot.forward, [&] { w_.hidden.forward(p_, forward_, k); });
        read_out(p_, net, count, k, stream_.get());
        record_features(p_, net, rest_, count, k, stream_.get());
        stage(slot.features, net.features, p_.stack.depth + 1);
        if (k < p_.updates) {
            seed_adjoints(p_, net, count, stream_.get());
            const double step = p_.train_hidden ? p_.learning_rate * p_.stack.branch_factor *
                                                      (1.0 / static_cast<double>(p_.stack.batch))
                                                : 0.0;
            timed(slot.backward, [&] { w_.hidden.backward(p_, backward_, k, step); });
            update_ends(p_, net, count, k, stream_.get());
            record_adjoints(p_, net, rest_, Hidden<T>::records_kernels, count, stream_.get());
            stage(slot.adjoints, net.adjoints, p_.stack.depth + 1);
        }
        // On its way while the next pass begins.
        slot.done.record(stream_.get());
        slot.done.hold(way_out_.get());
        check(cudaMemcpyAsync(slot.record.divergences, w_.record.divergences, w_.record_bytes,
                              cudaMemcpyDeviceToHost, way_out_.get()),
              "a copy");
        slot.copied.record(way_out_.get());
    }

    template <class Work>
    void timed(std::optional<Stopwatch>& watch, Work work) const {
        if (watch) {
            watch->time(stream_.get(), work);
        } else {
            work();
        }
    }

    // The recorded layers of features or adjoints, if they are wanted.
    void stage(T* to, const T* states, std::int64_t layers) {
        if (!to) return;
        const std::size_t layer = static_cast<std::size_t>(p_.stack.layer_size()) * sizeof(T);
        for (int r = 0; r < forward_.count; ++r) {
            check(cudaMemcpy2DAsync(to + r * recorded_size(), layer,
                                    states + r * layers * p_.stack.layer_size(),
                                    static_cast<std::size_t>(p_.record_every) * layer, layer,
                                    static_cast<std::size_t>(recorded_layers()),
                                    cudaMemcpyDeviceToHost, stream_.get()),
                  "a copy");
        }
    }

    // Waits for pass k and hands its records over: of the replicas that it found, and left, alive.
    void put_away(std::int64_t k) {
        const Slot& slot = slots_[k % kSlots];
        if (!wait(slot.copied)) return;
        if (slot.forward) {
            p_.pass_milliseconds[2 * k] += slot.forward->milliseconds();
            if (k < p_.updates) p_.pass_milliseconds[2 * k + 1] += slot.backward->milliseconds();
        }
        for (int r = 0; r < forward_.count; ++r) {
            const Divergence& divergence = slot.record.divergences[r];
            const bool well = divergence.quantity == Quantity::none;
            if (!well && divergence.update < k) continue;
            const std::int64_t replica = forward_.first + r;
            const bool forward = well || divergence.quantity == Quantity::adjoints;
            const bool backward = well && k < p_.updates;
            for (const RecordedField& field : fields_) {
                double* to = p_.records.*field.member;
                const std::int64_t row = k - field.first;
                if (!to || row < 0 || row >= field.rows || !(field.backward ? backward : forward)) {
                    continue;
                }
                std::copy_n(slot.record.row.*field.member + r * field.size, field.size,
                            to + (replica * field.rows + row) * field.size);
            }
            if (slot.features && forward) {
                std::copy_n(
                    slot.features + r * recorded_size(), recorded_size(),
                    p_.records.features + (replica * (p_.updates + 1) + k) * recorded_size());
            }
            if (slot.adjoints && backward) {
                std::copy_n(slot.adjoints + r * recorded_size(), recorded_size(),
                            p_.records.adjoints + (replica * p_.updates + k) * recorded_size());
            }
            if (well) {
                monitor_.advance();
                continue;
            }
            p_.divergences[replica] = divergence;
            monitor_.advance(p_.updates + 1 - k);
            --living_;
        }
    }

    // Returns false if the run is to stop instead.
    bool wait(const Event& event) {
        using std::chrono::microseconds;
        for (microseconds nap{5};; nap = std::min(2 * nap, microseconds{1000})) {
            monitor_.poll();
            if (monitor_.stopped()) return false;
            if (event.done()) return true;
            std::this_thread::sleep_for(nap);
        }
    }

    const Problem<T>& p_;
    Monitor& monitor_;
    std::vector<RecordedField> fields_;
    int most_;
    WaveMemory<T, Hidden> w_{};
    DeviceBlock memory_;
    Pinned<unsigned> halt_;
    Slot slots_[kSlots];
    Wave<T> forward_, backward_;
    RecordedRow rest_;  // what the hidden layers don't write
    int living_ = 0;
    Stream stream_{Urgency::urgent}, way_out_;
};

template <class T, template <class> class Hidden>
void train_replicas(const Problem<T>& problem, Monitor& monitor) {
    Replicas<T, Hidden>(problem, monitor).train();
}

}  // namespace nfd_fast::cuda
