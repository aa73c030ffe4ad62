// What one block does of a narrow layer: its strip of rows times the whole batch.
#pragma once

#include <cmath>

#include "cuda/activate.hpp"
#include "cuda/narrow_pass.hpp"

namespace nfd_fast::cuda {
namespace narrow {

// One block's work on one strip of one replica.
template <class T, int kGroups>
class Strip {
    using Here = Shared<T, kGroups>;
    // A thread has always the same neuron of a strip, and every 32nd sample.
    static constexpr int kOwn = kStrip * Here::packed / kThreads;

  public:
    using Place = StripPlace<T>;

    __device__ Strip(const Layers<T>& layers, const Place& place)
        : a_(layers),
          s_(layers.stack),
          shared_(shared_memory<T>()),
          place_(place),
          thread_(static_cast<int>(threadIdx.x)),
          width_(static_cast<int>(s_.width)) {}

    // phi(H_0), or G_L, for the other blocks.
    __device__ void pack_features() const {
        const T* layer = features(0);
        for_own([&](int i, int at) { pack(0, i, activate(s_.activation, layer[at])); });
    }
    __device__ void pack_adjoints(int l) const {
        const T* layer = adjoints(l);
        for_own([&](int i, int at) { pack(l, i, layer[at]); });
    }

    // Begins to load part of the matrices; nobody else writes it.
    __device__ void ask_rows(const Piece& piece) const {
        static_assert(kWarps == kStrip, "a warp has a row");
        const int row = thread_ / 32, count = inner_count(piece.start), end = padded(count);
        const T* from =
            place_.hidden + matrix_at(piece.l) + (place_.first + row) * width_ + piece.start;
        T* to = matrix_in(piece.place) + row * Here::row_stride;
        if (a_.even) {
            NFD_FAST_UNROLL
            for (int i = 0; i < Here::chunk; i += 32 * Here::unit) {
                const int k = i + lane() * Here::unit;
                if (k < count) copy_ahead<16>(to + k, from + k);
            }
            for (int k = count + lane(); k < end; k += 32) to[k] = T(0);
        } else {
            const bool there = place_.first + row < width_;
            for (int k = lane(); k < end; k += 32) to[k] = there && k < count ? from[k] : T(0);
        }
    }
    __device__ void ask_columns(const Piece& piece) const {
        const T* from =
            place_.backward_hidden + matrix_at(piece.l) + piece.start * width_ + place_.first;
        T* to = matrix_in(piece.place);
        const int count = inner_count(piece.start), end = padded(count);
        if (a_.even) {
            constexpr int across = kStrip / Here::unit;
            const int column = thread_ % across * Here::unit, first = thread_ / across;
            NFD_FAST_UNROLL
            for (int i = 0; i < Here::chunk; i += kThreads / across) {
                const int k = first + i;
                if (k < count) copy_ahead<16>(to + k * kStrip + column, from + k * width_ + column);
            }
            for (int at = count * kStrip + thread_; at < end * kStrip; at += kThreads) {
                to[at] = T(0);
            }
        } else {
            for (int at = thread_; at < end * kStrip; at += kThreads) {
                const int k = at / kStrip, column = at % kStrip;
                to[at] =
                    place_.first + column < width_ && k < count ? from[k * width_ + column] : T(0);
            }
        }
    }

    // What a strip has of a layer's input, and a layer needs besides its product.
    struct Features {
        T of[kOwn];
    };
    __device__ Features fetch_features(int l) const {
        Features found{};
        const T* layer = features(l);
        for_own([&](int i, int at) { found.of[i] = layer[at]; });
        return found;
    }
    struct Adjoints {
        T features[kOwn];  // H_{l-1}, then beta phi'(H_{l-1})/sqrt(n)
        T above[kOwn];     // G_l
        T factors[kOwn];   // -step/sqrt(n) w_b
    };
    __device__ Adjoints fetch_adjoints(int l) const {
        Adjoints found{};
        const T* layer = features(l - 1);
        const T* above = adjoints(l);
        const double* weights = a_.weights + place_.replica * s_.batch;
        for_own([&](int i, int at) {
            found.features[i] = layer[at];
            found.above[i] = above[at];
            if (a_.update) found.factors[i] = static_cast<T>(-a_.step * weights[sample(i)]);
        });
        return found;
    }
    // `place` is one of two, as others may still be at work on the step before.
    __device__ void weigh(Adjoints& own, T scale, int place) const {
        NFD_FAST_UNROLL
        for (int i = 0; i < kOwn; ++i) {
            const T feature = own.features[i];
            own.features[i] = scale * differentiate(s_.activation, feature);
            if (a_.update) {
                weighted_in(place)[thread_ + i * kThreads] =
                    own.factors[i] * activate(s_.activation, feature);
            }
        }
    }

    // H_l = H_{l-1} + beta W phi(H_{l-1})/sqrt(n). `piece` has been asked for; ask_next(piece)
    // moves on to the next and asks for it, as the last group of copies.
    template <class AskNext>
    __device__ void forward(int l, T scale, const Features& before, Piece& piece,
                            AskNext ask_next) const {
        Sums sums{};
        for (int start = 0; start < width_; start += Here::chunk) {
            if (start > 0) __syncthreads();  // the chunk before has been read
            ask_batch(l - 1, start);
            const T* matrix = matrix_in(piece.place);
            ask_next(piece);
            await_copies<1>();  // all but the next
            __syncthreads();
            multiply_rows(inner_count(start), matrix, sums);
        }
        put_sums(sums);
        __syncthreads();
        T* after = features(l);
        for_own([&](int i, int at) {
            const T sum = sum_of(i);
            const T value = s_.skip ? fused_multiply_add(scale, sum, before.of[i]) : scale * sum;
            after[at] = value;
            note_unless_finite(value, l, a_.bad_step + place_.replica);
            if (l < s_.depth) pack(l, i, activate(s_.activation, value));
        });
    }

    // G_{l-1} = G_l + beta phi'(H_{l-1}) (W'^T G_l)/sqrt(n), and the step of the strip's columns.
    // That of the last piece, which is returned, may be `postponed`: what it takes stays in shared
    // memory.
    template <class AskNext>
    __device__ Piece backward(int l, const Adjoints& own, int place, bool postponed, Piece& piece,
                              AskNext ask_next) const {
        Sums sums{};
        Piece now{};
        for (int start = 0; start < width_; start += Here::chunk) {
            if (start > 0) __syncthreads();  // the chunk before has been read
            ask_batch(l, start);
            now = piece;
            ask_next(piece);
            await_copies<1>();  // all but the next
            __syncthreads();
            multiply_columns(inner_count(start), matrix_in(now.place), sums);
            const bool last = start + Here::chunk >= width_;
            if (a_.update && !(last && postponed)) take_step(now, place);
        }
        put_sums(sums);
        __syncthreads();
        T* below = adjoints(l - 1);
        const T* entering = a_.adjoints.entering(s_, l - 1);
        for_own([&](int i, int at) {
            const T slope = own.features[i], sum = sum_of(i);
            T value = s_.skip ? fused_multiply_add(slope, sum, own.above[i]) : slope * sum;
            if (entering) value += entering[at];
            below[at] = value;
            note_unless_finite(value, static_cast<int>(s_.depth) - (l - 1),
                               a_.bad_step + place_.replica);
            if (l > 1) pack(l - 1, i, value);
        });
        return now;
    }

    // W' += sum_b G[b] weighted[b]^T for the piece of the strip's columns, which is in shared
    // memory with the adjoints. A thread has a run of a row, or of several.
    __device__ void take_step(const Piece& piece, int place) const {
        constexpr int kEach = Here::chunk * kStrip / kThreads;
        constexpr int kRun = kEach < 4 ? kEach : 4, kRows = kEach / kRun;
        constexpr int across = kStrip / kRun;
        // What a replica that has diverged does to itself is nobody's business, but those weights
        // may be the caller's.
        const bool well = a_.bad_step[place_.replica] == kNoBadStep;
        const int count = inner_count(piece.start);
        const int column = thread_ % across * kRun, first_row = thread_ / across;
        const T* weighted = weighted_in(place);
        T sums[kRows][kRun] = {};
        for (int b = 0; b < static_cast<int>(s_.batch); b += 4) {
            Pack<T, 4> adjoints[kRows];
            NFD_FAST_UNROLL
            for (int i = 0; i < kRows; ++i) {
                const int k = first_row + i * (kThreads / across);
                adjoints[i] = pack_at<T, 4>(shared_.batch + k * Here::batch_stride + b);
            }
            NFD_FAST_UNROLL
            for (int inner = 0; inner < 4; ++inner) {
                const auto run = pack_at<T, kRun>(weighted + (b + inner) * kStrip + column);
                NFD_FAST_UNROLL
                for (int i = 0; i < kRows; ++i) {
                    NFD_FAST_UNROLL
                    for (int j = 0; j < kRun; ++j) {
                        sums[i][j] =
                            fused_multiply_add(adjoints[i].of[inner], run.of[j], sums[i][j]);
                    }
                }
            }
        }
        if (!well) return;
        const std::int64_t corner =
            matrix_at(piece.l) + piece.start * width_ + place_.first + column;
        T* matrix = place_.backward_hidden + corner;
        T* other = a_.hidden == a_.backward_hidden ? nullptr : place_.hidden + corner;
        NFD_FAST_UNROLL
        for (int i = 0; i < kRows; ++i) {
            const int k = first_row + i * (kThreads / across);
            if (k >= count) continue;
            auto moved = pack_at<T, kRun>(matrix_in(piece.place) + k * kStrip + column);
            NFD_FAST_UNROLL
            for (int j = 0; j < kRun; ++j) moved.of[j] += sums[i][j];
            if (a_.even) {
                pack_at<T, kRun>(matrix + k * width_) = moved;
                if (!other) continue;
                Pack<T, kRun>& along = pack_at<T, kRun>(other + k * width_);
                auto run = along;
                NFD_FAST_UNROLL
                for (int j = 0; j < kRun; ++j) run.of[j] += sums[i][j];
                along = run;
                continue;
            }
            NFD_FAST_UNROLL
            for (int j = 0; j < kRun; ++j) {
                if (place_.first + column + j >= width_) continue;
                matrix[k * width_ + j] = moved.of[j];
                if (other) other[k * width_ + j] += sums[i][j];
            }
        }
    }

    // The step of the strip's columns alone, with packed adjoints.
    __device__ void update(int l) const {
        Adjoints own = fetch_adjoints(l);
        weigh(own, T(0), 0);
        for (int start = 0; start < width_; start += Here::chunk) {
            const Piece piece{l, 0, start, 0};
            ask_columns(piece);
            ask_batch(l, start);
            await_copies<0>();
            __syncthreads();
            take_step(piece, 0);
            __syncthreads();
        }
    }

  private:
    struct Sums {
        T of[2][Here::groups][4];
    };

    // Numbers of an array up to layer l; each layer is small.
    __device__ static std::int64_t up_to(int l, std::int64_t layer) {
        return static_cast<std::int64_t>(l) * static_cast<int>(layer);
    }
    __device__ T* features(int l) const { return place_.features + up_to(l, s_.layer_size()); }
    __device__ T* adjoints(int l) const {
        return place_.adjoints + up_to(a_.adjoints.all_layers ? l : l % 2, s_.layer_size());
    }
    __device__ std::int64_t matrix_at(int l) const { return up_to(l - 1, s_.matrix_size()); }
    __device__ T* packed(int l) const { return place_.packed + l % 2 * width_ * Here::packed; }
    __device__ T* matrix_in(int place) const {
        return shared_.matrices + place * Here::matrix_size;
    }

    __device__ T* weighted_in(int place) const {
        return shared_.weighted + place * Here::packed * kStrip;
    }

    // Of the i-th number that this thread has of its strip.
    __device__ int row() const { return thread_ % kStrip; }
    __device__ int sample(int i) const { return thread_ / kStrip + i * (kThreads / kStrip); }
    __device__ void pack(int l, int i, T value) const {
        packed(l)[(place_.first + row()) * Here::packed + sample(i)] = value;
    }
    // f(i, place in a layer) for all that there are.
    template <class F>
    __device__ void for_own(F f) const {
        if (place_.first + row() >= width_) return;
        NFD_FAST_UNROLL
        for (int i = 0; i < kOwn; ++i) {
            if (sample(i) < static_cast<int>(s_.batch)) {
                f(i, sample(i) * width_ + place_.first + row());
            }
        }
    }

    __device__ int inner_count(int start) const { return at_most(width_ - start, Here::chunk); }
    // Each warp has as many, a multiple of kAtOnce.
    __device__ static int per_warp(int count) {
        return (count + kAtOnce * Here::splits - 1) / (kAtOnce * Here::splits) * kAtOnce;
    }
    __device__ static int padded(int count) { return Here::splits * per_warp(count); }

    __device__ void ask_batch(int l, int start) const {
        constexpr int across = Here::packed / Here::unit;
        const int column = thread_ % across * Here::unit, first = thread_ / across;
        const int count = inner_count(start), end = padded(count);
        const T* from = packed(l) + start * Here::packed + column;
        T* to = shared_.batch + column;
        NFD_FAST_UNROLL
        for (int i = 0; i < Here::chunk; i += kThreads / across) {
            const int k = first + i;
            if (k < count) copy_ahead<16>(to + k * Here::batch_stride, from + k * Here::packed);
        }
        for (int k = first; k < end; k += kThreads / across) {
            if (k >= count) pack_at<T, Here::unit>(to + k * Here::batch_stride) = {};
        }
        close_copies();
    }

    __device__ int lane() const { return thread_ % 32; }
    __device__ int lane_row() const { return lane() / 8 * 2; }
    // The first of its four columns in a group.
    __device__ int lane_column(int group) const {
        return (thread_ / 32 / Here::splits * Here::groups + group) * kGroup + lane() % 8 * 4;
    }
    __device__ int split() const { return thread_ / 32 % Here::splits; }

    __device__ void multiply_rows(int count, const T* matrix, Sums& sums) const {
        const int each = per_warp(count), first = split() * each;
        const T* rows = matrix + lane_row() * Here::row_stride;
        for (int k = first; k < first + each; k += kAtOnce) {
            const auto upper = pack_at<T, kAtOnce>(rows + k);
            const auto lower = pack_at<T, kAtOnce>(rows + Here::row_stride + k);
            NFD_FAST_UNROLL
            for (int i = 0; i < kAtOnce; ++i) add(upper.of[i], lower.of[i], k + i, sums);
        }
    }
    __device__ void multiply_columns(int count, const T* matrix, Sums& sums) const {
        const int each = per_warp(count), first = split() * each;
        const T* rows = matrix + lane_row();
        for (int k = first; k < first + each; k += kAtOnce) {
            NFD_FAST_UNROLL
            for (int i = 0; i < kAtOnce; ++i) {
                const auto two = pack_at<T, 2>(rows + (k + i) * kStrip);
                add(two.of[0], two.of[1], k + i, sums);
            }
        }
    }
    __device__ void add(T upper, T lower, int k, Sums& sums) const {
        NFD_FAST_UNROLL
        for (int group = 0; group < Here::groups; ++group) {
            const auto batch =
                pack_at<T, 4>(shared_.batch + k * Here::batch_stride + lane_column(group));
            NFD_FAST_UNROLL
            for (int j = 0; j < 4; ++j) {
                T* upper_sum = &sums.of[0][group][j];
                T* lower_sum = &sums.of[1][group][j];
                *upper_sum = fused_multiply_add(upper, batch.of[j], *upper_sum);
                *lower_sum = fused_multiply_add(lower, batch.of[j], *lower_sum);
            }
        }
    }

    // The products of all warps, for sum_of().
    __device__ void put_sums(const Sums& sums) const {
        NFD_FAST_UNROLL
        for (int row = 0; row < 2; ++row) {
            NFD_FAST_UNROLL
            for (int group = 0; group < Here::groups; ++group) {
                Pack<T, 4> four;
                NFD_FAST_UNROLL
                for (int j = 0; j < 4; ++j) four.of[j] = sums.of[row][group][j];
                pack_at<T, 4>(shared_.sums +
                              (split() * kStrip + lane_row() + row) * Here::batch_stride +
                              lane_column(group)) = four;
            }
        }
    }
    __device__ T sum_of(int i) const {
        T sum = 0;
        NFD_FAST_UNROLL
        for (int split = 0; split < Here::splits; ++split) {
            sum += shared_.sums[(split * kStrip + row()) * Here::batch_stride + sample(i)];
        }
        return sum;
    }

    const Layers<T>& a_;
    const LayerStack& s_;
    Here shared_;
    Place place_;
    int thread_, width_;
};

}  // namespace narrow
}  // namespace nfd_fast::cuda
