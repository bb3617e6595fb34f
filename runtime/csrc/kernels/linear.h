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

// Activations in the form that tiles read: rounded, or for dense weights floats
// [tile][column][row].
struct Prepared {
  uint8_t* memory;
  int64_t rows;
  int64_t tiles;
  int64_t tile_bytes;  // of the highest tile
  bool dense;

  // Rows are spread evenly: five are three and two, because a tile of one row costs more than half
  // of a tile of two.
  int64_t height(int64_t tile) const { return rows / tiles + (tile < rows % tiles ? 1 : 0); }
  int64_t first_row(int64_t tile) const {
    const int64_t larger = rows % tiles;
    return tile * (rows / tiles) + (tile < larger ? tile : larger);
  }
  uint8_t* tile(int64_t index) const { return memory + index * tile_bytes; }
};

inline bool is_dense(WeightFormat format) {
  return format == WeightFormat::kF32 || format == WeightFormat::kF16;
}

// What preparing one tile needs besides its result.
struct PrepareWork {
  float* normed;    // [k]
  float* largest;   // [k / 32]
  uint8_t* coarse;  // [kTileRows][coarse_row_bytes]

  static int64_t bytes(int64_t k) {
    return (k + k / 32 + 32) / 16 * 64 + kTileRows * coarse_row_bytes(k / 32);
  }
  PrepareWork(uint8_t* memory, int64_t k)
      : normed(reinterpret_cast<float*>(memory)),
        largest(normed + k),
        coarse(memory + (k + k / 32 + 32) / 16 * 64) {}
};

// Norms and rounds the rows of one tile. row_ids: rows of x, or null: all in order.
inline void prepare_tile(const LinearArgs& args, const int64_t* row_ids, const Prepared& to,
                         int64_t index, const PrepareWork& work) {
  const int64_t height = to.height(index), k = args.k, groups = k / 32;
  const RoundedTile tile = rounded_tile(to.tile(index), height, groups);
  CoarseRow coarse[kTileRows];
  for (int64_t at = 0; at < height; ++at) {
    const int64_t row = to.first_row(index) + at;
    const float* x = args.x + (row_ids ? row_ids[row] : row) * k;
    if (args.norm.kind != NormKind::kNone) {
      norm_row(x, k, args.norm, work.normed);
      x = work.normed;
    }
    if (to.dense) {
      float* columns = reinterpret_cast<float*>(to.tile(index)) + at;
      for (int64_t c = 0; c < k; ++c) columns[c * height] = x[c];
      continue;
    }
    coarse[at].terms = reinterpret_cast<RoundedGroup*>(work.coarse + at * coarse_row_bytes(groups));
    coarse[at].groups = reinterpret_cast<int32_t*>(coarse[at].terms + coarse_limit(groups));
    round_row(x, groups, zero_of(args.format), tile.all, at, work.largest, coarse[at]);
  }
  if (!to.dense) merge_coarse(coarse, height, tile);
}

inline Prepared prepare(const LinearArgs& args, const int64_t* row_ids, int64_t rows,
                        const Parallel& parallel) {
  Prepared to;
  to.dense = is_dense(args.format);
  to.rows = rows;
  to.tiles = (rows + kTileRows - 1) / kTileRows;
  const int64_t tiles = to.tiles, highest = to.height(0);
  to.tile_bytes =
      to.dense ? (highest * args.k * 4 + 63) / 64 * 64 : rounded_tile_bytes(highest, args.k / 32);
  // Handing out a few rows costs more than rounding them.
  const bool serial = tiles == 1 || rows * args.k < 4096;
  const int64_t data = tiles * to.tile_bytes, each = (PrepareWork::bytes(args.k) + 63) / 64 * 64;
  to.memory = static_cast<uint8_t*>(
      scratch(Scratch::kActivations, static_cast<size_t>(data + (serial ? 1 : tiles) * each)));
  auto body = [&](size_t tile) {
    const int64_t t = static_cast<int64_t>(tile);
    prepare_tile(args, row_ids, to, t, {to.memory + data + (serial ? 0 : t * each), args.k});
  };
  if (serial)
    for (int64_t t = 0; t < tiles; ++t) body(static_cast<size_t>(t));
  else
    run_parallel(parallel, static_cast<size_t>(tiles), body);
  return to;
}

// A tile against two records: first [R], then second [R].
template <WeightFormat F, int R>
inline void pair_of_blocks(const uint8_t* first, const uint8_t* second, const Ahead& ahead,
                           int64_t k, uint8_t* activations, V (&out)[2][R]) {
  constexpr bool kDense = F == WeightFormat::kF32 || F == WeightFormat::kF16;
  constexpr int kAtOnce = kBlocksPerTile;
  for (int b = 0; b < 2; b += kAtOnce) {
    const uint8_t* both[2] = {first, second};
    V(&part)[kAtOnce][R] = *reinterpret_cast<V(*)[kAtOnce][R]>(&out[b]);
    if constexpr (kDense) {
      tile_dense<F, R, kAtOnce>(both + b, ahead, k, reinterpret_cast<float*>(activations), part);
    } else {
      const RoundedTile tile = rounded_tile(activations, R, k / 32);
      tile_rounded<F, R, kAtOnce>(both + b, ahead, k, tile, part);
    }
  }
}

// The same, stored as [2][rows][16].
template <WeightFormat F, int R>
inline void stored_pair(const uint8_t* first, const uint8_t* second, const Ahead& ahead, int64_t k,
                        uint8_t* activations, float* out) {
  V sums[2][R];
  pair_of_blocks<F, R>(first, second, ahead, k, activations, sums);
  for (int b = 0; b < 2; ++b)
    for (int r = 0; r < R; ++r) store(out + 16 * (b * R + r), sums[b][r]);
}

using PairFunction = void (*)(const uint8_t*, const uint8_t*, const Ahead&, int64_t, uint8_t*,
                              float*);

template <WeightFormat F>
inline PairFunction pair_function(int64_t height) {
  static_assert(kTileRows == 4 || kTileRows == 6);
  switch (height) {
    case 1: return stored_pair<F, 1>;
    case 2: return stored_pair<F, 2>;
    case 3: return stored_pair<F, 3>;
    case 4: return stored_pair<F, 4>;
    default: break;
  }
  if constexpr (kTileRows == 4)
    return nullptr;
  else
    return height == 5 ? stored_pair<F, 5> : stored_pair<F, 6>;
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

// Bias, activation, gate and residual of a row's outputs from `column` on, n <= 16 of them.
// raised: the other half of a gated pair, or null.
inline void finish_block(const LinearArgs& args, int64_t row, int64_t column, int n,
                         const float* values, const float* raised) {
  V value = load(values);
  if (args.bias) value = add(value, load_columns(args.bias + column, n));
  if (args.activation != Activation::kNone) value = activate(value, args.activation);
  if (raised) {
    V other = load(raised);
    if (args.bias) other = add(other, load_columns(args.bias + args.n + column, n));
    value = mul(value, other);
  }
  const int64_t at = row * args.n + column;
  if (args.residual) value = add(value, load_columns(args.residual + at, n));
  store_columns(args.y + at, value, n);
}

// `count` rows from `row` on of a pair of blocks; values: [2][count][16].
inline void finish_pair(const LinearArgs& args, int64_t pair, int64_t row, int64_t count,
                        const float* values) {
  const int blocks = args.gated ? 1 : 2;
  for (int b = 0; b < blocks; ++b) {
    const int64_t column = (pair * blocks + b) * 16, left = args.n - column;
    if (left <= 0) break;
    const int n = static_cast<int>(left < 16 ? left : 16);
    for (int64_t r = 0; r < count; ++r)
      finish_block(args, row + r, column, n, values + (b * count + r) * 16,
                   args.gated ? values + (count + r) * 16 : nullptr);
  }
}

// The pairs of blocks from `first` to `last` for all rows. Rows go in parts that stay in the second
// cache level, so that a pair's weights are read from memory once per part.
inline void linear_pairs(const LinearArgs& args, const Prepared& x, int64_t first, int64_t last) {
  constexpr int64_t kPartBytes = 1800 << 10;  // half of it is read
  const size_t record = record_bytes(args.format, args.k);
  const int64_t groups = (args.k + 31) / 32;
  const int64_t blocks = args.gated ? 2 * ((args.n + 15) / 16) : (args.n + 15) / 16;
  const int64_t tiles = x.tiles;
  int64_t part = kPartBytes / x.tile_bytes;
  if (part < 1) part = 1;
  alignas(64) float values[2 * kTileRows * 16];
  for (int64_t start = 0; start < tiles; start += part) {
    const int64_t end = start + part < tiles ? start + part : tiles;
    for (int64_t pair = first; pair < last; ++pair) {
      const uint8_t* records = args.weights + static_cast<size_t>(2 * pair) * record;
      const bool single = 2 * pair + 1 >= blocks;  // the last of an odd number meets itself
      for (int64_t tile = start; tile < end; ++tile) {
        const int64_t height = x.height(tile);
        // The last few tiles ask for the next pair; earlier ones would do so too soon.
        const int64_t asking = end - start < 4 ? end - start : 4;
        Ahead ahead;
        if (end - tile <= asking) {
          const int64_t lines = (2 * static_cast<int64_t>(record) / 64 + asking - 1) / asking;
          ahead.lines = (lines + groups - 1) / groups;
          ahead.next = records + 2 * record + (asking - (end - tile)) * lines * 64;
        }
        pair_function(args.format, height)(records, single ? records : records + record, ahead,
                                           args.k, x.tile(tile), values);
        finish_pair(args, pair, x.first_row(tile), height, values);
      }
    }
  }
}

// Runs work(first, last) over ranges of pairs that read about 32 KB, so that handing them out costs
// little beside.
template <class Work>
inline void over_pairs(const LinearArgs& args, const Parallel& parallel, Work work) {
  const int64_t blocks = (args.n + 15) / 16;
  const int64_t pairs = args.gated ? blocks : (blocks + 1) / 2;
  const int64_t bytes = 2 * static_cast<int64_t>(record_bytes(args.format, args.k));
  const int64_t count = (32 << 10) / bytes;
  over_parts(parallel, pairs, count < 1 ? 1 : count, work);
}

inline void linear(const LinearArgs& args, const Parallel& parallel) {
  if (args.rows == 0 || args.n == 0) return;
  const Prepared x = prepare(args, nullptr, args.rows, parallel);
  over_pairs(args, parallel,
             [&](int64_t first, int64_t last) { linear_pairs(args, x, first, last); });
}

}  // namespace qd::QD_ISA
