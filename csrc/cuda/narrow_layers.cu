#include <algorithm>
#include <cmath>

#include "cuda/activate.hpp"
#include "cuda/barrier.hpp"
#include "cuda/narrow_layers.hpp"

namespace nfd_fast::cuda {
namespace {

// What a block does for one strip and layer is a product of 8 rows with the whole batch. The inner
// index is cut into chunks, which fit shared memory, and every chunk among the warps; a lane has
// two rows and four columns per group of 32. The sums of the warps are added in their order. All of
// it depends on the width and the batch alone, and so do the bits: not on how many blocks there are
// or how many strips each has.
//
// A layer takes as long as its slowest block, which mostly waits: for the others, then for memory.
// So whatever does not need them is done or asked for before the block waits: matrices come a piece
// ahead, and the step of the layer above is taken when the adjoints below have been handed on.
constexpr int kStrip = 8;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kGroup = 32;  // columns of a batch
constexpr int kAtOnce = 8;  // of the inner index, whose loads are on their way together
constexpr std::int64_t kMostStrips = 16384;

// Neighbours that move together.
template <class T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
    T of[N];
};
template <class T, int N>
__device__ inline Pack<T, N>& pack_at(T* at) {
    return *reinterpret_cast<Pack<T, N>*>(at);
}
template <class T, int N>
__device__ inline const Pack<T, N>& pack_at(const T* at) {
    return *reinterpret_cast<const Pack<T, N>*>(at);
}

template <class T>
struct Layers {
    LayerStack stack;
    std::int64_t replicas;
    T* hidden;           // (replicas, L, n, n); only read forward
    T* backward_hidden;  // the same; where another one, `hidden` only moves along
    T* features;         // (replicas, L+1, B, n)
    AdjointStore<T> adjoints;
    std::int64_t stored_adjoints;  // layers
    const double* weights;         // (replicas, B)
    int* bad_step;                 // (replicas)
    bool update;
    double step;  // eta beta m/sqrt(n)
    // phi(H_l) or G_l of the layer in work and of the next, neuron by neuron, with zeros where a
    // batch does not fill its groups: (replicas, 2, n, packed).
    T* packed;
    unsigned* arrived;
    bool even;  // strips are whole, and their rows lie where 16 bytes can move at once
};

// For so many a multiprocessor shall have registers; with more, products would keep theirs in
// memory.
template <class T, int kGroups>
constexpr int kLeastBlocks = sizeof(T) * kGroups < 32 ? 2 : 1;

// How a batch of kGroups groups lies in shared memory: padded, so that neither lanes that read a
// row nor lanes that read the same columns of different rows collide.
template <class T, int kGroups>
struct Shared {
    static constexpr int packed = kGroup * kGroups;
    // Numbers of the inner index in a chunk: as many bytes of a batch for every type and size.
    static constexpr int chunk = static_cast<int>((std::size_t{1} << 15) / (packed * sizeof(T)));
    static constexpr int batch_stride = packed + 4;
    static constexpr int row_stride = chunk + 4;  // of a strip's rows
    static constexpr int matrix_size = kStrip * row_stride;
    // Warps share the inner index and, where a batch has several groups, the groups.
    static constexpr int across = kGroups == 1 ? 1 : 2;
    static constexpr int splits = kWarps / across;
    static constexpr int groups = kGroups / across;  // of a warp
    static constexpr int unit = 16 / sizeof(T);      // numbers that are copied at once
    static_assert(chunk % (splits * kAtOnce) == 0, "padded chunks fit");

    T* batch;     // (chunk, packed)
    T* sums;      // (splits, strip, packed)
    T* matrices;  // two pieces: forward (strip, chunk), backward (chunk, strip)
    T* weighted;  // two of (packed, strip): -step/sqrt(n) w_b phi(H)

    static constexpr std::size_t bytes(bool backward) {
        return sizeof(T) *
               static_cast<std::size_t>((chunk + splits * kStrip) * batch_stride + 2 * matrix_size +
                                        (backward ? 2 * packed * kStrip : 0));
    }
    __device__ explicit Shared(T* at)
        : batch(at),
          sums(batch + chunk * batch_stride),
          matrices(sums + splits * kStrip * batch_stride),
          weighted(matrices + 2 * matrix_size) {}
};

// A piece of a matrix that a block multiplies with: a chunk of a strip of a layer.
struct Piece {
    int l, strip, start;
    int place;  // of two in shared memory, in turns
};

// Where a strip's replica has its arrays: found once, not for every layer.
template <class T>
struct StripPlace {
    int replica, first;  // neuron
    T *hidden, *backward_hidden, *features, *adjoints, *packed;

    __device__ StripPlace(const Layers<T>& a, int strip, int packed_batch) {
        const LayerStack& s = a.stack;
        const int strips = (static_cast<int>(s.width) + kStrip - 1) / kStrip;
        replica = strip / strips;
        first = strip % strips * kStrip;
        hidden = a.hidden + replica * s.depth * s.matrix_size();
        backward_hidden = a.backward_hidden + replica * s.depth * s.matrix_size();
        features = a.features + replica * (s.depth + 1) * s.layer_size();
        adjoints = a.adjoints.data + replica * a.stored_adjoints * s.layer_size();
        packed = a.packed + replica * 2 * s.width * packed_batch;
    }
};

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

template <class T>
__device__ inline int strips_of(const Layers<T>& a) {
    return static_cast<int>(a.replicas * ((a.stack.width + kStrip - 1) / kStrip));
}

template <class T, int kGroups>
__device__ inline StripPlace<T> place_of(const Layers<T>& a, int strip) {
    return StripPlace<T>(a, strip, Shared<T, kGroups>::packed);
}

template <class T>
__device__ inline T branch_scale(const LayerStack& s) {
    return static_cast<T>(s.branch_factor / ::sqrt(static_cast<double>(s.width)));
}

// The piece of this block that follows, `down` the layers or up; false if none does.
template <class T, int kGroups>
__device__ inline bool advance(const Layers<T>& a, bool down, Piece& piece) {
    piece.place = 1 - piece.place;
    piece.start += Shared<T, kGroups>::chunk;
    if (piece.start < static_cast<int>(a.stack.width)) return true;
    piece.start = 0;
    piece.strip += static_cast<int>(gridDim.x);
    if (piece.strip < strips_of(a)) return true;
    piece.strip = static_cast<int>(blockIdx.x);
    piece.l += down ? -1 : 1;
    return down ? piece.l >= 1 : piece.l <= a.stack.depth;
}

template <class T, int kGroups>
__global__ void __launch_bounds__(kThreads, kLeastBlocks<T, kGroups>) forward_kernel(Layers<T> a) {
    const int strips = strips_of(a), first = static_cast<int>(blockIdx.x);
    const int stride = static_cast<int>(gridDim.x), depth = static_cast<int>(a.stack.depth);
    const T scale = branch_scale<T>(a.stack);
    const auto own_place = place_of<T, kGroups>(a, first);
    const Strip<T, kGroups> own(a, own_place);
    const auto strip_at = [&](int strip) {
        return Strip<T, kGroups>(a, strip == first ? own_place : place_of<T, kGroups>(a, strip));
    };
    Piece piece{1, first, 0, 0};
    const auto ask_next = [&](Piece& at) {
        if (advance<T, kGroups>(a, false, at)) strip_at(at.strip).ask_rows(at);
        close_copies();
    };
    own.ask_rows(piece);
    close_copies();
    Barrier barrier(a.arrived);
    for (int strip = first; strip < strips; strip += stride) strip_at(strip).pack_features();
    for (int l = 1; l <= depth; ++l) {
        barrier.arrive();
        auto before = own.fetch_features(l - 1);
        barrier.wait();
        for (int strip = first; strip < strips; strip += stride) {
            const auto here = strip_at(strip);
            if (strip != first) before = here.fetch_features(l - 1);
            here.forward(l, scale, before, piece, ask_next);
        }
    }
}

template <class T, int kGroups>
__global__ void __launch_bounds__(kThreads, kLeastBlocks<T, kGroups>) backward_kernel(Layers<T> a) {
    const int strips = strips_of(a), first = static_cast<int>(blockIdx.x);
    const int stride = static_cast<int>(gridDim.x), depth = static_cast<int>(a.stack.depth);
    const T scale = branch_scale<T>(a.stack);
    const auto own_place = place_of<T, kGroups>(a, first);
    const Strip<T, kGroups> own(a, own_place);
    const auto strip_at = [&](int strip) {
        return Strip<T, kGroups>(a, strip == first ? own_place : place_of<T, kGroups>(a, strip));
    };
    Piece piece{depth, first, 0, 0};
    const auto ask_next = [&](Piece& at) {
        if (advance<T, kGroups>(a, true, at)) strip_at(at.strip).ask_columns(at);
        close_copies();
    };
    own.ask_columns(piece);
    close_copies();
    Barrier barrier(a.arrived);
    for (int strip = first; strip < strips; strip += stride) {
        strip_at(strip).pack_adjoints(depth);
    }
    barrier.arrive();
    auto ours = own.fetch_adjoints(depth);
    int place = 0;
    own.weigh(ours, scale, place);
    barrier.wait();
    for (int l = depth; l >= 1; --l) {
        Piece last{};
        for (int strip = first; strip < strips; strip += stride) {
            const auto here = strip_at(strip);
            if (strip != first) {
                ours = here.fetch_adjoints(l);
                __syncthreads();  // the strip before has moved
                here.weigh(ours, scale, place);
            }
            last = here.backward(l, ours, place, strip + stride >= strips, piece, ask_next);
        }
        if (l > 1) {
            barrier.arrive();
            ours = own.fetch_adjoints(l - 1);
        }
        if (a.update) strip_at(last.strip).take_step(last, place);
        if (l > 1) {
            place = 1 - place;
            own.weigh(ours, scale, place);
            barrier.wait();
        }
    }
}

template <class T, int kGroups>
__global__ void __launch_bounds__(kThreads, kLeastBlocks<T, kGroups>) update_kernel(Layers<T> a) {
    const int strips = strips_of(a), first = static_cast<int>(blockIdx.x);
    const int stride = static_cast<int>(gridDim.x), depth = static_cast<int>(a.stack.depth);
    Barrier barrier(a.arrived);
    for (int l = depth; l >= 1; --l) {
        // Beside those of the layer before, which others may be reading.
        for (int strip = first; strip < strips; strip += stride) {
            Strip<T, kGroups>(a, place_of<T, kGroups>(a, strip)).pack_adjoints(l);
        }
        barrier.arrive();
        barrier.wait();
        for (int strip = first; strip < strips; strip += stride) {
            Strip<T, kGroups>(a, place_of<T, kGroups>(a, strip)).update(l);
        }
    }
}

template <class T>
struct Kernels {
    void (*forward)(Layers<T>);
    void (*backward)(Layers<T>);
    void (*update)(Layers<T>);
    std::size_t forward_bytes, backward_bytes;
    std::int64_t packed;
};
template <class T, int kGroups>
Kernels<T> kernels_of_groups() {
    using Here = Shared<T, kGroups>;
    return {forward_kernel<T, kGroups>, backward_kernel<T, kGroups>, update_kernel<T, kGroups>,
            Here::bytes(false),         Here::bytes(true),           Here::packed};
}
template <class T>
Kernels<T> kernels_for(const LayerStack& s) {
    if (s.batch <= kGroup) return kernels_of_groups<T, 1>();
    return s.batch <= 2 * kGroup ? kernels_of_groups<T, 2>() : kernels_of_groups<T, 4>();
}

std::int64_t strips_of(const LayerStack& s) { return (s.width + kStrip - 1) / kStrip; }

template <class T>
bool is_even(const LayerStack& s, const T* matrices) {
    return s.width % kStrip == 0 && reinterpret_cast<std::uintptr_t>(matrices) % 16 == 0;
}

template <class T>
void run(void (*kernel)(Layers<T>), const Layers<T>& layers, int blocks, std::size_t shared_bytes,
         cudaStream_t stream) {
    if (layers.stack.depth == 0) return;
    check(cudaMemsetAsync(layers.arrived, 0, sizeof(unsigned), stream), "clearing memory");
    const std::int64_t strips = layers.replicas * strips_of(layers.stack);
    launch(kernel, dim3(static_cast<unsigned>(std::min<std::int64_t>(blocks, strips))), kThreads,
           shared_bytes, stream, true, layers);
}

}  // namespace

template <class T>
int NarrowLayers<T>::most_replicas(const LayerStack& s) {
    return static_cast<int>(std::max<std::int64_t>(1, kMostStrips / strips_of(s)));
}

template <class T>
void NarrowLayers<T>::lay_out(const LayerStack& s, Arena& arena, int replicas) {
    packed_count_ = 2 * replicas * s.width * kernels_for<T>(s).packed;
    arena.take(packed_, static_cast<double>(packed_count_));
    arena.take(arrived_, 1);
}

template <class T>
void NarrowLayers<T>::prepare(const LayerStack& s, const Wave<T>& wave) {
    const Kernels<T> kernels = kernels_for<T>(s);
    forward_blocks_ = resident_blocks(kernels.forward, kThreads, kernels.forward_bytes);
    backward_blocks_ = resident_blocks(kernels.backward, kThreads, kernels.backward_bytes);
    update_blocks_ = resident_blocks(kernels.update, kThreads, kernels.backward_bytes);
    check(cudaMemsetAsync(packed_, 0, static_cast<std::size_t>(packed_count_) * sizeof(T),
                          wave.stream),
          "clearing memory");
}

template <class T>
void NarrowLayers<T>::forward(const LayerStack& s, const Wave<T>& wave, const T* hidden) const {
    Layers<T> layers{};
    layers.stack = s;
    layers.replicas = wave.count;
    layers.hidden = const_cast<T*>(hidden);
    layers.features = wave.features;
    layers.bad_step = wave.bad_step;
    layers.packed = packed_;
    layers.arrived = arrived_;
    layers.even = is_even(s, hidden);
    const Kernels<T> kernels = kernels_for<T>(s);
    run(kernels.forward, layers, forward_blocks_, kernels.forward_bytes, wave.stream);
}

template <class T>
void NarrowLayers<T>::backward(const LayerStack& s, const Wave<T>& wave, T* hidden,
                               T* backward_hidden, bool all_adjoints, bool update,
                               double step) const {
    const Layers<T> layers{s,
                           wave.count,
                           hidden,
                           backward_hidden,
                           wave.features,
                           {wave.adjoints, all_adjoints, wave.sources},
                           all_adjoints ? s.depth + 1 : 2,
                           wave.weights,
                           wave.bad_step,
                           update,
                           step / std::sqrt(static_cast<double>(s.width)),
                           packed_,
                           arrived_,
                           is_even(s, hidden) && is_even(s, backward_hidden)};
    const Kernels<T> kernels = kernels_for<T>(s);
    run(kernels.backward, layers, backward_blocks_, kernels.backward_bytes, wave.stream);
}

template <class T>
void NarrowLayers<T>::update(const LayerStack& s, const Wave<T>& wave, T* hidden,
                             double step) const {
    Layers<T> layers{};
    layers.stack = s;
    layers.replicas = wave.count;
    layers.hidden = layers.backward_hidden = hidden;
    layers.features = wave.features;
    layers.adjoints = {wave.adjoints, true};
    layers.stored_adjoints = s.depth + 1;
    layers.weights = wave.weights;
    layers.bad_step = wave.bad_step;
    layers.update = true;
    layers.step = step / std::sqrt(static_cast<double>(s.width));
    layers.packed = packed_;
    layers.arrived = arrived_;
    layers.even = is_even(s, hidden);
    const Kernels<T> kernels = kernels_for<T>(s);
    run(kernels.update, layers, update_blocks_, kernels.backward_bytes, wave.stream);
}

template class NarrowLayers<float>;
template class NarrowLayers<double>;

}  // namespace nfd_fast::cuda
