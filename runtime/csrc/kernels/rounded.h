// Activations rounded to int8 per row and group of 32 columns, laid out for the tiles of tile.h.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace qd::QD_ISA {

// Rows of one tile. Everything a group needs lies together: group, then row.
struct RoundedTile {
  int8_t* codes;      // [group][row][32]
  float* scale;       // [group][row]
  float* scaled_sum;  // [group][row]: scale * sum of the 32 codes
  int32_t* sums;      // [group][row][2]: sums of 16 codes each
};

// Bytes of a row in a tile: per group 32 codes, scale, scaled sum, two sums.
constexpr int64_t kRoundedBytes = 48;

// The tile of `height` rows that comes after `before` rows.
inline RoundedTile rounded_tile(void* memory, int64_t before, int64_t height, int64_t groups) {
  int8_t* base = static_cast<int8_t*>(memory) + before * groups * kRoundedBytes;
  const int64_t cells = height * groups;
  return {base, reinterpret_cast<float*>(base + 32 * cells),
          reinterpret_cast<float*>(base + 36 * cells), reinterpret_cast<int32_t*>(base + 40 * cells)};
}

// Rounds 32 values to codes: scale = largest magnitude / 127, code = value / scale to nearest even.
// A group that holds infinity or NaN gets a scale that is one of them, so the result shows it.
// rest (32 values, or null) receives what the rounding lost.
inline void round_group(const float* x, int8_t* codes, float* scale, float* scaled_sum,
                        int32_t* sums, float* rest) {
  const V a = load(x), b = load(x + 16);
  const float largest = max_of(max(abs(a), abs(b)));
  // 0 for numbers, NaN where there is an infinity or NaN.
  const float broken = sum(add(mul(sub(a, a), zero()), mul(sub(b, b), zero())));
  const bool codable = largest > 1e-30f && broken == 0.0f;
  const float step = codable ? largest * (1.0f / 127) : 0.0f;
  const V inverse = set1(codable ? 127.0f / largest : 0.0f);
  V p = zero(), q = zero();
  if (codable) {
    p = round_even(mul(a, inverse));
    q = round_even(mul(b, inverse));
  }
  store_i8(codes, p);
  store_i8(codes + 16, q);
  const float first = sum(p), second = sum(q);
  *scale = step + broken;
  *scaled_sum = *scale * (first + second);
  sums[0] = static_cast<int32_t>(first);
  sums[1] = static_cast<int32_t>(second);
  if (rest) {
    const V negative = set1(-step);
    store(rest, fma(p, negative, a));
    store(rest + 16, fma(q, negative, b));
  }
}

// Rounds one row of k values into its places of a tile. terms 2: rows `row` and `row + 1` of the tile
// hold what the first rounding gave and what rounding the rest gave.
inline void round_row(const float* x, int64_t k, int terms, const RoundedTile& tile, int64_t row,
                      int64_t height) {
  float rest[32];
  for (int64_t g = 0; g < k / 32; ++g) {
    const float* values = x + 32 * g;
    for (int t = 0; t < terms; ++t) {
      const int64_t cell = g * height + row + t;
      round_group(t ? rest : values, tile.codes + 32 * cell, tile.scale + cell,
                  tile.scaled_sum + cell, tile.sums + 2 * cell, t + 1 < terms ? rest : nullptr);
    }
  }
}

}  // namespace qd::QD_ISA
