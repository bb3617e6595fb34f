// Linear layers: activations are normed and rounded once, then tiles of rows meet pairs of blocks.
//
// A pair of blocks belongs to one task, so a sum is never split over threads.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"
#include "kernels/norm.h"
#include "kernels/parallel.h"
#include "kernels/rounded.h"
#include "kernels/scratch.h"
#include "kernels/tile.h"

namespace qd::QD_ISA {

// Activations in the form that tiles read: rounded, or for dense weights floats [tile][column][row].
struct Prepared {
  uint8_t* memory;
  int64_t rows;       // of tiles: terms per row of the layer
  int64_t row_bytes;
  bool dense;

  int64_t tiles() const { return (rows + kTileRows - 1) / kTileRows; }
  int64_t height(int64_t tile) const {
    const int64_t left = rows - tile * kTileRows;
    return left < kTileRows ? left : kTileRows;
  }
  uint8_t* tile(int64_t index) const { return memory + index * kTileRows * row_bytes; }
};

inline bool is_dense(WeightFormat format) {
  return format == WeightFormat::kF32 || format == WeightFormat::kF16;
}

// Norms and rounds the rows of one tile. row_ids: rows of x, or null: all in order. normed: k floats.
inline void prepare_tile(const LinearArgs& args, const int64_t* row_ids, const Prepared& to,
                         int64_t tile, float* normed) {
  const int terms = to.dense ? 1 : args.terms;
  const int64_t height = to.height(tile), k = args.k;
  for (int64_t at = 0; at < height; at += terms) {
    const int64_t row = (tile * kTileRows + at) / terms;
    const float* x = args.x + (row_ids ? row_ids[row] : row) * k;
    if (args.norm.kind != NormKind::kNone) {
      norm_row(x, k, args.norm, normed);
      x = normed;
    }
    if (to.dense) {
      float* columns = reinterpret_cast<float*>(to.tile(tile)) + at;
      for (int64_t c = 0; c < k; ++c) columns[c * height] = x[c];
    } else {
      round_row(x, k, terms, rounded_tile(to.tile(tile), 0, height, k / 32), at, height);
    }
  }
}

inline Prepared prepare(const LinearArgs& args, const int64_t* row_ids, int64_t rows,
                        const Parallel& parallel) {
  Prepared to;
  to.dense = is_dense(args.format);
  to.rows = rows * (to.dense ? 1 : args.terms);
  to.row_bytes = to.dense ? args.k * 4 : args.k / 32 * kRoundedBytes;
  const int64_t tiles = to.tiles(), data = (to.rows * to.row_bytes + 63) / 64 * 64;
  // Handing out a few rows costs more than rounding them.
  const bool serial = tiles == 1 || to.rows * args.k < 32768;
  const int64_t buffers = serial ? 1 : tiles;
  to.memory = static_cast<uint8_t*>(
      scratch(Scratch::kActivations, static_cast<size_t>(data + buffers * (args.k + 16) * 4)));
  float* normed = reinterpret_cast<float*>(to.memory + data);
  auto body = [&](size_t tile) {
    const int64_t t = static_cast<int64_t>(tile);
    prepare_tile(args, row_ids, to, t, normed + (serial ? 0 : t * (args.k + 16)));
  };
  if (serial)
    for (int64_t t = 0; t < tiles; ++t) body(static_cast<size_t>(t));
  else
    run_parallel(parallel, static_cast<size_t>(tiles), body);
  return to;
}

// A tile against two records: first [R], then second [R].
template <WeightFormat F, int R>
inline void pair_of_blocks(const uint8_t* first, const uint8_t* second, size_t ahead, int64_t k,
                           const uint8_t* activations, V (&out)[2][R]) {
  constexpr bool kDense = F == WeightFormat::kF32 || F == WeightFormat::kF16;
  constexpr int kAtOnce = kBlocksPerTile;
  for (int b = 0; b < 2; b += kAtOnce) {
    const uint8_t* both[2] = {first, second};
    V(&part)[kAtOnce][R] = *reinterpret_cast<V(*)[kAtOnce][R]>(&out[b]);
    if constexpr (kDense) {
      tile_dense<F, R, kAtOnce>(both + b, ahead, k, reinterpret_cast<const float*>(activations),
                                part);
    } else {
      const RoundedTile tile = rounded_tile(const_cast<uint8_t*>(activations), 0, R, k / 32);
      tile_rounded<F, R, kAtOnce>(both + b, ahead, k, tile, part);
    }
  }
}

// Sums of all terms of each row, stored as [2][rows][16].
template <WeightFormat F, int R>
inline void stored_pair(const uint8_t* first, const uint8_t* second, size_t ahead, int64_t k,
                        const uint8_t* activations, int terms, float* out) {
  V sums[2][R];
  pair_of_blocks<F, R>(first, second, ahead, k, activations, sums);
  const int step = is_dense(F) ? 1 : terms;
  for (int b = 0; b < 2; ++b)
    for (int r = 0; r < R; r += step) {
      V total = sums[b][r];
      if (step == 2 && r + 1 < R) total = add(total, sums[b][r + 1]);
      store(out, total);
      out += 16;
    }
}

using PairFunction = void (*)(const uint8_t*, const uint8_t*, size_t, int64_t, const uint8_t*, int,
                              float*);

template <WeightFormat F>
inline PairFunction pair_function(int64_t height) {
  static constexpr PairFunction kFunctions[] = {
      stored_pair<F, 1>, stored_pair<F, 2>, stored_pair<F, 3>, stored_pair<F, 4>,
      stored_pair<F, 5>, stored_pair<F, 6>, stored_pair<F, 7>, stored_pair<F, 8>};
  static_assert(kTileRows <= 8);
  return kFunctions[height - 1];
}

inline PairFunction pair_function(WeightFormat format, int64_t height) {
  switch (format) {
    case WeightFormat::kF32: return pair_function<WeightFormat::kF32>(height);
    case WeightFormat::kF16: return pair_function<WeightFormat::kF16>(height);
    case WeightFormat::kW4: return pair_function<WeightFormat::kW4>(height);
    case WeightFormat::kW4M: return pair_function<WeightFormat::kW4M>(height);
    case WeightFormat::kW4K: return pair_function<WeightFormat::kW4K>(height);
    case WeightFormat::kW6K: return pair_function<WeightFormat::kW6K>(height);
    case WeightFormat::kW8: return pair_function<WeightFormat::kW8>(height);
    case WeightFormat::kW8M: return pair_function<WeightFormat::kW8M>(height);
    case WeightFormat::kW8K: break;
  }
  return pair_function<WeightFormat::kW8K>(height);
}

// Bias, activation, gate and residual of `count` rows from `row` on; values: [2][count][16].
inline void finish_pair(const LinearArgs& args, int64_t pair, int64_t row, int64_t count,
                        const float* values) {
  const int outputs = args.gated ? 16 : 32;
  for (int64_t r = 0; r < count; ++r)
    for (int b = 0; b < (args.gated ? 1 : 2); ++b) {
      const int64_t column = pair * outputs + 16 * b, left = args.n - column;
      if (left <= 0) break;
      const int n = static_cast<int>(left < 16 ? left : 16);
      V value = load(values + (b * count + r) * 16);
      if (args.bias) value = add(value, load_columns(args.bias + column, n));
      value = activate(value, args.activation);
      if (args.gated) {
        V raised = load(values + (count + r) * 16);
        if (args.bias) raised = add(raised, load_columns(args.bias + args.n + column, n));
        value = mul(value, raised);
      }
      const int64_t at = (row + r) * args.n + column;
      if (args.residual) value = add(value, load_columns(args.residual + at, n));
      store_columns(args.y + at, value, n);
    }
}

// The pairs of blocks from `first` to `last` for all rows. Rows go in parts that stay in the second
// cache level, so that a pair's weights are read from memory once per part.
inline void linear_pairs(const LinearArgs& args, const Prepared& x, int64_t first, int64_t last) {
  constexpr int64_t kPartBytes = 400 << 10;
  const size_t record = record_bytes(args.format, args.k);
  const int64_t blocks = args.gated ? 2 * ((args.n + 15) / 16) : (args.n + 15) / 16;
  const int terms = x.dense ? 1 : args.terms;
  const int64_t tiles = x.tiles();
  int64_t part = kPartBytes / (kTileRows * x.row_bytes);
  if (part < 1) part = 1;
  alignas(64) float values[2 * kTileRows * 16];
  for (int64_t start = 0; start < tiles; start += part) {
    const int64_t end = start + part < tiles ? start + part : tiles;
    for (int64_t pair = first; pair < last; ++pair) {
      const uint8_t* records = args.weights + static_cast<size_t>(2 * pair) * record;
      const bool single = 2 * pair + 1 >= blocks;  // the last of an odd number meets itself
      for (int64_t tile = start; tile < end; ++tile) {
        const int64_t height = x.height(tile);
        // The last tile asks for the next pair; earlier ones would only do so too soon.
        const size_t ahead = tile + 1 == end ? 2 * record : 0;
        pair_function(args.format, height)(records, single ? records : records + record, ahead,
                                           args.k, x.tile(tile), terms, values);
        finish_pair(args, pair, tile * kTileRows / terms, height / terms, values);
      }
    }
  }
}

// Runs work(first, last) over ranges of pairs. A task reads about 32 KB at least, so that handing it
// out costs little beside.
template <class Work>
inline void over_pairs(const LinearArgs& args, const Parallel& parallel, Work work) {
  const int64_t blocks = (args.n + 15) / 16;
  const int64_t pairs = args.gated ? blocks : (blocks + 1) / 2;
  const int64_t bytes = 2 * pairs * static_cast<int64_t>(record_bytes(args.format, args.k));
  int64_t tasks = bytes / (32 << 10) / 2 * 2;
  if (tasks > 64) tasks = 64;
  if (tasks > pairs) tasks = pairs;
  if (tasks < 1) tasks = 1;
  auto body = [&](size_t task) {
    const int64_t t = static_cast<int64_t>(task);
    work(pairs * t / tasks, pairs * (t + 1) / tasks);
  };
  run_parallel(parallel, static_cast<size_t>(tasks), body);
}

inline void linear(const LinearArgs& args, const Parallel& parallel) {
  if (args.rows == 0 || args.n == 0) return;
  const Prepared x = prepare(args, nullptr, args.rows, parallel);
  over_pairs(args, parallel,
             [&](int64_t first, int64_t last) { linear_pairs(args, x, first, last); });
}

}  // namespace qd::QD_ISA
