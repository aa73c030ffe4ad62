// The three products of a hidden layer with a batch, in three ways. With few columns reading the
// matrices is what costs, and they are read once for all that is wanted of them. With more, they
// are used as they lie, block by block from the cache. With very many the BLAS library is as fast.
//
// Each class is one member's view of them, made anew for a pass over the layers:
//     static double scratch_size(stack, members)            of what its team needs
//     std::int64_t rows()                                   neurons that are finished together
//     Parts parts()                                         how the work on a matrix is dealt
//     void activate(slot, features, first, count)           phi of neurons of one layer
//     void forward(slot, matrix, before, first, count, after)        rows of W phi, and the skip
//     void weigh(before, update, first, count)              -step/sqrt(n) w_b phi of neurons
//     void backward(adjoints, part, matrix, moves)          G W; then the matrix moves, or not
//     void update(adjoints, part, replace, matrix)          the matrix moves by, or becomes, a step
//     const T* product(b, first, count, row)                what backward gave; perhaps in `row`
// Included by layers.cpp alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cpu/blas.hpp"
#include "cpu/kernels.hpp"
#include "cpu/layers.hpp"

namespace nfd_fast {
namespace {

using blas::Transpose;

std::int64_t rounded_up(std::int64_t count, std::int64_t unit) {
    return (count + unit - 1) / unit * unit;
}

// A part of one matrix.
struct Part {
    std::int64_t row, rows, first, count;  // its rows and columns
};

// An even share of `total` for each of `members`, in turns where it would be more than `most`.
std::int64_t even_share(std::int64_t total, std::int64_t members, std::int64_t most) {
    const std::int64_t turns =
        std::max<std::int64_t>((total + members * most - 1) / (members * most), 1);
    const std::int64_t even = (total + members * turns - 1) / (members * turns);
    return std::clamp<std::int64_t>(rounded_up(even, even < 64 ? 16 : 64), 1,
                                    std::max<std::int64_t>(most, 1));
}

// How the work on a matrix is dealt. Whole rows follow each other in memory: members that pass each
// over rows of its own do so up to twice as fast as over columns, more yet on processors that share
// no cache, as one asks in advance for what is the other's. But what blocks of rows give must then
// be added, by somebody who did not make it. So there are few of them, and no more of them for more
// members: their number decides in which order a sum is taken, the cuts between columns don't.
struct Parts {
    std::int64_t rows, columns;  // of a part
    std::int64_t row_blocks, column_parts;

    Parts(std::int64_t width, std::int64_t blocks, std::int64_t members, std::int64_t most_columns)
        : rows(rounded_up((width + blocks) / blocks, 8)),
          columns(even_share(width, (members + blocks - 1) / blocks, most_columns)),
          row_blocks((width + rows - 1) / rows),
          column_parts((width + columns - 1) / columns) {}

    // Whether whoever finishes a column is not who began it.
    bool cut() const { return row_blocks > 1; }
};

template <class T>
T branch_scale(const LayerStack& stack) {
    return static_cast<T>(stack.branch_factor / std::sqrt(static_cast<double>(stack.width)));
}

// One column's part of -step/sqrt(n) w_b phi(H_{l-1}[b]).
template <class T>
void weigh_run(const LayerStack& stack, const HiddenUpdate<T>& update, std::int64_t b,
               const T* features, std::int64_t count, T* out) {
    const double step = update.step / std::sqrt(static_cast<double>(stack.width));
    kernels().of<T>().activate(stack.activation, features, count, out);
    kernels().of<T>().scale(static_cast<T>(-step * update.sample_weights[b]), out, count, out);
}

// Calls f(first, count) for runs of at most `most`.
template <class F>
void for_runs(std::int64_t total, std::int64_t most, F f) {
    for (std::int64_t i = 0; i < total; i += most) f(i, std::min(most, total - i));
}

template <class T>
void clear_part(const LayerStack& stack, Part part, T* matrix) {
    for (std::int64_t i = part.row; i < part.row + part.rows; ++i) {
        std::fill_n(matrix + i * stack.width + part.first, part.count, T(0));
    }
}

template <class T>
class ThinProducts {
  public:
    static double scratch_size(const LayerStack& stack, int) {
        return static_cast<double>((row_blocks(stack) + 1) * packed_size(stack));
    }

    ThinProducts(const LayerStack& stack, T* scratch, Team team)
        : s_(stack),
          rows_(even_share(stack.width, team.size, kMostTile)),
          parts_(stack.width, row_blocks(stack), team.size, stack.width),
          scratch_(scratch),
          weighted_(scratch + row_blocks(stack) * packed_size(stack)) {}

    std::int64_t rows() const { return rows_; }
    const Parts& parts() const { return parts_; }

    void activate(int slot, const T* features, std::int64_t first, std::int64_t count) const {
        T column[kMostTile];
        for (std::int64_t b = 0; b < s_.batch; ++b) {
            vector_.activate(s_.activation, features + b * s_.width + first, count, column);
            vector_.pack_column(
                column, count, s_.batch,
                scratch_ + slot * packed_size(s_) + first * s_.batch + b * vector_.pack);
        }
    }

    void forward(int slot, const T* matrix, const T* before, std::int64_t first, std::int64_t count,
                 T* after) const {
        vector_.thin_forward(matrix + first * s_.width, s_.width, count, s_.width,
                             scratch_ + slot * packed_size(s_), s_.batch, branch_scale<T>(s_),
                             s_.skip ? before + first : nullptr, after + first, s_.width);
    }

    void weigh(const T* before, const HiddenUpdate<T>& update, std::int64_t first,
               std::int64_t count) const {
        T column[kMostTile];
        for (std::int64_t b = 0; b < s_.batch; ++b) {
            for_runs(count, kMostTile, [&](std::int64_t i, std::int64_t now) {
                weigh_run(s_, update, b, before + b * s_.width + first + i, now, column);
                vector_.pack_column(column, now, s_.batch,
                                    weighted_ + (first + i) * s_.batch + b * vector_.pack);
            });
        }
    }

    void backward(const T* adjoints, Part part, T* matrix, bool moves) const {
        T* product = scratch_ + part.row / parts_.rows * packed_size(s_);
        std::fill_n(product + part.first * s_.batch, s_.batch * rounded_up(part.count, 16), T(0));
        pass(adjoints, part, matrix, moves ? weighted_ : nullptr, product);
    }

    void update(const T* adjoints, Part part, bool replace, T* matrix) const {
        if (replace) clear_part(s_, part, matrix);
        pass(adjoints, part, matrix, weighted_, nullptr);
    }

    // Adds what all blocks of rows gave, in their order.
    const T* product(std::int64_t b, std::int64_t first, std::int64_t count, T* row) const {
        T more[kMostTile];
        for (std::int64_t block = 0; block < parts_.row_blocks; ++block) {
            vector_.unpack_column(
                scratch_ + block * packed_size(s_) + first * s_.batch + b * vector_.pack, s_.batch,
                count, block == 0 ? row : more);
            if (block > 0) vector_.axpy(T(1), more, count, row);
        }
        return row;
    }

  private:
    static std::int64_t packed_size(const LayerStack& stack) {
        return stack.batch * stack.padded_width();
    }

    // So many that what they give is little next to the matrix.
    static std::int64_t row_blocks(const LayerStack& stack) {
        constexpr std::int64_t most = 8, little = 64;
        const std::int64_t batch = std::max<std::int64_t>(stack.batch, 1);
        return std::clamp<std::int64_t>(stack.width / (little * batch), 1, most);
    }

    // Some rows after others, each time in runs as long as leave room in the second level of the
    // cache for what is made of them.
    void pass(const T* adjoints, Part part, T* matrix, const T* weighted, T* product) const {
        constexpr std::int64_t some = 64, longest = 2048, shortest = 128, cached = 8192;
        const std::int64_t fit = cached / std::max<std::int64_t>(s_.batch, 1) / 64 * 64;
        const std::int64_t run = std::clamp(fit, shortest, longest);
        for_runs(part.rows, some, [&](std::int64_t i, std::int64_t rows) {
            for_runs(part.count, run, [&](std::int64_t j, std::int64_t count) {
                const std::int64_t row = part.row + i, first = part.first + j;
                vector_.thin_backward(matrix + row * s_.width + first, s_.width, rows, count,
                                      adjoints + row, s_.width, s_.batch,
                                      weighted ? weighted + first * s_.batch : nullptr,
                                      product ? product + first * s_.batch : nullptr);
            });
        });
    }

    const VectorKernels<T>& vector_ = kernels().of<T>();
    const LayerStack& s_;
    const std::int64_t rows_;
    const Parts parts_;
    T* const scratch_;   // packed batches: activations in two slots, or products of row blocks
    T* const weighted_;  // packed
};

// Weighted activations and products as the larger batches have them.
template <class T>
class WideProducts {
  public:
    const Parts& parts() const { return parts_; }

    void weigh(const T* before, const HiddenUpdate<T>& update, std::int64_t first,
               std::int64_t count) const {
        for (std::int64_t b = 0; b < s_.batch; ++b) {
            weigh_run(s_, update, b, before + b * s_.width + first, count,
                      weighted_ + b * stride_of(s_) + first);
        }
    }

    const T* product(std::int64_t b, std::int64_t first, std::int64_t count, T* row) const {
        const T* one = scratch_ + b * s_.width + first;
        if (!parts_.cut()) return one;
        std::copy_n(one, count, row);
        for (std::int64_t block = 1; block < parts_.row_blocks; ++block) {
            vector_.axpy(T(1), one + block * wide_size(s_), count, row);
        }
        return row;
    }

  protected:
    static std::int64_t wide_size(const LayerStack& stack) { return stack.batch * stack.width; }

    // Of weighted activations: rows a multiple of 4 KiB apart would fall on the same lines of the
    // cache.
    static std::int64_t stride_of(const LayerStack& stack) { return stack.width + 16; }

    static double backward_scratch(const LayerStack& stack, std::int64_t row_blocks) {
        return static_cast<double>(row_blocks) * static_cast<double>(wide_size(stack)) +
               static_cast<double>(stack.batch) * static_cast<double>(stride_of(stack));
    }

    WideProducts(const LayerStack& stack, T* scratch, const Parts& parts)
        : s_(stack),
          parts_(parts),
          scratch_(scratch),
          weighted_(scratch + parts.row_blocks * wide_size(stack)) {}

    const VectorKernels<T>& vector_ = kernels().of<T>();
    const LayerStack& s_;
    const Parts parts_;
    T* const scratch_;  // products (B, n), or what a forward pass needs
    T* const weighted_;
};

template <class T>
class BlockedProducts : public WideProducts<T> {
  public:
    static double scratch_size(const LayerStack& stack, int members) {
        const auto forward = static_cast<double>(2 * activations_size(stack) +
                                                 members * kRows * padded_batch(stack));
        return std::max(forward, Base::backward_scratch(stack, row_blocks(stack)));
    }

    BlockedProducts(const LayerStack& stack, T* scratch, Team team)
        : Base(stack, scratch, {stack.width, row_blocks(stack), team.size, kColumns}),
          rows_(even_share(stack.width, team.size, kRows)),
          sums_(scratch + 2 * activations_size(stack) + team.rank * kRows * padded_batch(stack)) {}

    std::int64_t rows() const { return rows_; }

    void activate(int slot, const T* features, std::int64_t first, std::int64_t count) const {
        constexpr std::int64_t some = 64;
        T rows[kTransposed * some];
        for_panels([&](std::int64_t b, std::int64_t columns) {
            T* panel = scratch_ + slot * activations_size(s_) + b * s_.width + first * columns;
            for_runs(count, some, [&](std::int64_t i, std::int64_t now) {
                for_runs(columns, kTransposed, [&](std::int64_t c, std::int64_t together) {
                    for (std::int64_t r = 0; r < together; ++r) {
                        T* row = rows + r * some;
                        const std::int64_t column = b + c + r;
                        if (column < s_.batch) {
                            vector_.activate(s_.activation,
                                             features + column * s_.width + first + i, now, row);
                        } else {
                            std::fill_n(row, now, T(0));
                        }
                    }
                    vector_.transpose(rows, some, together, now, panel + i * columns + c, columns);
                });
            });
        });
    }

    void forward(int slot, const T* matrix, const T* before, std::int64_t first, std::int64_t count,
                 T* after) const {
        const std::int64_t n = s_.width, padded = padded_batch(s_);
        const T* activations = scratch_ + slot * activations_size(s_);
        std::fill_n(sums_, count * padded, T(0));
        for_runs(n, kDepth, [&](std::int64_t k, std::int64_t inner) {
            for_panels([&](std::int64_t b, std::int64_t columns) {
                vector_.multiply({matrix + first * n + k, n, 1, activations + b * n + k * columns,
                                  columns, sums_ + b, padded, count, columns, inner},
                                 {});
            });
        });
        T rows[kTransposed * kRows];
        for_runs(s_.batch, kTransposed, [&](std::int64_t b, std::int64_t together) {
            vector_.transpose(sums_ + b, padded, count, together, rows, kRows);
            for (std::int64_t r = 0; r < together; ++r) {
                T* out = after + (b + r) * n + first;
                if (s_.skip) {
                    std::copy_n(before + (b + r) * n + first, count, out);
                    vector_.axpy(branch_scale<T>(s_), rows + r * kRows, count, out);
                } else {
                    vector_.scale(branch_scale<T>(s_), rows + r * kRows, count, out);
                }
            }
        });
    }

    void backward(const T* adjoints, Part part, T* matrix, bool moves) const {
        T* product = scratch_ + part.row / parts_.rows * Base::wide_size(s_) + part.first;
        for (std::int64_t b = 0; b < s_.batch; ++b) {
            std::fill_n(product + b * s_.width, part.count, T(0));
        }
        pass(adjoints, part, matrix, moves, product);
    }

    void update(const T* adjoints, Part part, bool replace, T* matrix) const {
        if (replace) clear_part(s_, part, matrix);
        pass(adjoints, part, matrix, true, nullptr);
    }

  private:
    using Base = WideProducts<T>;
    using Base::s_, Base::parts_, Base::scratch_, Base::weighted_, Base::vector_;

    // Rows and columns of a matrix that are multiplied together. kBlock rows of them, and as many
    // that are asked for, stay in the second level of the cache; long runs come from memory faster.
    static constexpr std::int64_t kRows = 128, kDepth = 512, kBlock = 64, kColumns = 512;
    static constexpr std::int64_t kTransposed = 16;  // columns of a batch that are turned together

    static std::int64_t padded_batch(const LayerStack& stack) {
        return rounded_up(stack.batch, kernels().of<T>().pack);
    }

    // Neurons by columns of the batch, panel by panel.
    static std::int64_t activations_size(const LayerStack& stack) {
        return padded_batch(stack) * stack.width;
    }

    // See ThinProducts. What blocks of rows give is more next to the matrix here, and two of them
    // cost 1% where processors share a cache; where they don't, it is a third less time.
    static std::int64_t row_blocks(const LayerStack& stack) { return stack.width < 256 ? 1 : 2; }

    template <class F>
    void for_panels(F f) const {
        for_runs(padded_batch(s_), vector_.panel, f);
    }

    // product += G W, then W += G^T weighted, block by block.
    void pass(const T* adjoints, Part part, T* matrix, bool moves, T* product) const {
        const std::int64_t n = s_.width;
        for_runs(part.rows, kBlock, [&](std::int64_t i, std::int64_t rows) {
            const T* factors = adjoints + part.row + i;
            T* block = matrix + (part.row + i) * n + part.first;
            const Ahead<T> ahead{block + kBlock * n, n, std::min(kBlock, part.rows - i - rows),
                                 part.count};
            if (product) {
                vector_.multiply({factors, n, 1, block, n, product, n, s_.batch, part.count, rows},
                                 ahead);
            }
            if (moves) {
                vector_.multiply({factors, 1, n, weighted_ + part.first, Base::stride_of(s_), block,
                                  n, rows, part.count, s_.batch},
                                 product ? Ahead<T>{} : ahead);
            }
        });
    }

    const std::int64_t rows_;
    T* const sums_;  // (rows, padded batch)
};

template <class T>
class LibraryProducts : public WideProducts<T> {
  public:
    static double scratch_size(const LayerStack& stack, int) {
        return std::max(2.0 * static_cast<double>(Base::wide_size(stack)),
                        Base::backward_scratch(stack, 1));
    }

    LibraryProducts(const LayerStack& stack, T* scratch, Team)
        : Base(stack, scratch, {stack.width, 1, 1, stack.tile()}) {}

    std::int64_t rows() const { return s_.tile(); }

    void activate(int slot, const T* features, std::int64_t first, std::int64_t count) const {
        for (std::int64_t b = 0; b < s_.batch; ++b) {
            const std::int64_t at = b * s_.width + first;
            vector_.activate(s_.activation, features + at, count,
                             scratch_ + slot * Base::wide_size(s_) + at);
        }
    }

    void forward(int slot, const T* matrix, const T* before, std::int64_t first, std::int64_t count,
                 T* after) const {
        const std::int64_t n = s_.width;
        for (std::int64_t b = 0; b < s_.batch && s_.skip; ++b) {
            std::copy_n(before + b * n + first, count, after + b * n + first);
        }
        blas::multiply(Transpose::no, Transpose::yes, s_.batch, count, n, branch_scale<T>(s_),
                       scratch_ + slot * Base::wide_size(s_), n, matrix + first * n, n,
                       T(s_.skip ? 1 : 0), after + first, n);
    }

    void backward(const T* adjoints, Part part, T* matrix, bool moves) const {
        const std::int64_t n = s_.width;
        blas::multiply(Transpose::no, Transpose::no, s_.batch, part.count, n, T(1), adjoints, n,
                       matrix + part.first, n, T(0), scratch_ + part.first, n);
        if (moves) update(adjoints, part, false, matrix);
    }

    void update(const T* adjoints, Part part, bool replace, T* matrix) const {
        const std::int64_t n = s_.width;
        blas::multiply(Transpose::yes, Transpose::no, n, part.count, s_.batch, T(1), adjoints, n,
                       weighted_ + part.first, Base::stride_of(s_), T(replace ? 0 : 1),
                       matrix + part.first, n);
    }

  private:
    using Base = WideProducts<T>;
    using Base::s_, Base::parts_, Base::scratch_, Base::weighted_, Base::vector_;
};

// Calls f with the class for this batch, as a type. All columns of a batch have the same.
template <class T, class F>
auto with_products(const LayerStack& stack, F f) {
    const auto& vector = kernels().of<T>();
    const std::int64_t batch = stack.layer_size() / std::max<std::int64_t>(stack.width, 1);
    if (batch <= vector.most_thin) return f(static_cast<ThinProducts<T>*>(nullptr));
    if (batch <= vector.most_blocked) return f(static_cast<BlockedProducts<T>*>(nullptr));
    return f(static_cast<LibraryProducts<T>*>(nullptr));
}

}  // namespace
}  // namespace nfd_fast
