// Register tiles of attention: up to six queries against 16 or 64 positions (scores) and against 16
// or 64 value columns (weighted sums). Each result is one chain of fused multiply-adds, over the
// head's columns for a score, over positions for a sum; tile sizes decide only how often a load is
// used.
#pragma once

#include <cstdint>

#include "kernels/inline.h"
#include "kernels/kernels.h"
#include "kernels/norm.h"

namespace qd::QD_ISA {

// Sixteen stored values as floats; those of int8 are codes, whose scale is applied to the sums.
inline V load_stored(const float* p) { return load(p); }
inline V load_stored(const uint16_t* p) { return load_half(p); }
inline V load_stored(const int8_t* p) { return load_i8(p); }

constexpr int kTileQueries = 6;
#if defined(__AVX512F__)
constexpr int kTileVectors = 4;  // 24 sums, 4 loads and a broadcast in 32 registers
#else
constexpr int kTileVectors = 1;
#endif

// Rows of floats, `stride` apart.
struct FloatRows {
  float* first;
  int64_t stride;
  float* row(int64_t i) const { return first + i * stride; }
};

// Keys of one head for whole groups of 16 positions, [head_dim][16] each, groups `stride` apart.
template <class Stored>
struct KeyGroups {
  Stored* first;
  int64_t stride;
  int64_t dim;
  float* scales;  // [bands][16] per group, or null
  int64_t scale_stride;

  KeyGroups from(int64_t group) const {
    return {first + group * stride, stride, dim, scales ? scales + group * scale_stride : nullptr,
            scale_stride};
  }
};

// Values of one head for consecutive positions, `stride` apart.
template <class Stored>
struct ValueRows {
  Stored* first;
  int64_t stride;

  ValueRows from(int64_t column) const { return {first + column, stride}; }
};

// s[i][g] += products of columns begin .. end - 1 of Q queries and G groups. Inlined by force, so
// that the sums stay in registers.
template <int Q, int G, class Stored>
QD_INLINE void score_columns(const FloatRows& queries, const KeyGroups<Stored>& keys, int64_t begin,
                             int64_t end, V (&s)[Q][G]) {
  const Stored* column = keys.first + begin * 16;
  for (int64_t d = begin; d < end; ++d, column += 16) {
    V k[G];
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) k[g] = load_stored(column + g * keys.stride);
#pragma GCC unroll 8
    for (int i = 0; i < Q; ++i) {
      const V q = set1(queries.first[i * queries.stride + d]);
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) s[i][g] = fma(q, k[g], s[i][g]);
    }
  }
}

template <int Q, int G>
QD_INLINE void clear(V (&s)[Q][G]) {
#pragma GCC unroll 8
  for (int i = 0; i < Q; ++i)
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) s[i][g] = zero();
}

// scores[i][16 g + lane] = queries[i] . key, for Q queries and G groups. With scales: the sum over
// bands, in ascending order, of their products times their scale.
template <int Q, int G, class Stored>
inline void score_tile(const FloatRows& queries, const KeyGroups<Stored>& keys,
                       const FloatRows& scores) {
  V s[Q][G];
  if (!keys.scales) {
    clear(s);
    score_columns(queries, keys, 0, keys.dim, s);
#pragma GCC unroll 8
    for (int i = 0; i < Q; ++i)
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) store(scores.row(i) + 16 * g, s[i][g]);
    return;
  }
  const int64_t half = (keys.dim + 1) / 2, bands = key_bands(keys.dim);
  for (int64_t b = 0; b < bands; ++b) {
    const int64_t begin = b * kBandColumns, end = begin + kBandColumns;
    clear(s);
    score_columns(queries, keys, begin, end < half ? end : half, s);
    score_columns(queries, keys, half + begin, half + end < keys.dim ? half + end : keys.dim, s);
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      const V scale = load(keys.scales + g * keys.scale_stride + 16 * b);
#pragma GCC unroll 8
      for (int i = 0; i < Q; ++i) {
        float* score = scores.row(i) + 16 * g;
        store(score, fma(s[i][g], scale, b == 0 ? zero() : load(score)));
      }
    }
  }
}

// sums[i][16 j + lane] += weights[i][p] * values[p][16 j + lane], p < count ascending, for Q
// queries and N vectors of columns.
template <int Q, int N, class Stored>
inline void value_tile(const FloatRows& weights, const ValueRows<Stored>& values, int64_t count,
                       const FloatRows& sums) {
  V s[Q][N];
#pragma GCC unroll 8
  for (int i = 0; i < Q; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) s[i][j] = load(sums.row(i) + 16 * j);
  const Stored* value = values.first;
  for (int64_t p = 0; p < count; ++p, value += values.stride) {
    V v[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) v[j] = load_stored(value + 16 * j);
#pragma GCC unroll 8
    for (int i = 0; i < Q; ++i) {
      const V w = set1(weights.first[i * weights.stride + p]);
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) s[i][j] = fma(w, v[j], s[i][j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < Q; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) store(sums.row(i) + 16 * j, s[i][j]);
}

template <int N>
struct Count {
  static constexpr int kValue = N;
};

// run(Count<n>) for n in 1 .. kTileQueries.
template <class Run>
inline void with_count(int64_t n, Run run) {
  switch (n) {
    case 1: return run(Count<1>());
    case 2: return run(Count<2>());
    case 3: return run(Count<3>());
    case 4: return run(Count<4>());
    case 5: return run(Count<5>());
    default: return run(Count<6>());
  }
}

// Scores of `count` <= kTileQueries queries against `groups` groups.
template <class Stored>
inline void score_groups(int64_t count, int64_t groups, const FloatRows& queries,
                         const KeyGroups<Stored>& keys, const FloatRows& scores) {
  with_count(count, [&](auto queries_at_once) {
    constexpr int kQueries = decltype(queries_at_once)::kValue;
    int64_t g = 0;
    for (; g + kTileVectors <= groups; g += kTileVectors)
      score_tile<kQueries, kTileVectors>(queries, keys.from(g),
                                         {scores.first + 16 * g, scores.stride});
    for (; g < groups; ++g)
      score_tile<kQueries, 1>(queries, keys.from(g), {scores.first + 16 * g, scores.stride});
  });
}

// Weighted sums of `count` <= kTileQueries queries over `positions` positions; `columns`, the
// values per position, a multiple of 16.
template <class Stored>
inline void sum_values(int64_t count, int64_t positions, const FloatRows& weights,
                       const ValueRows<Stored>& values, int64_t columns, const FloatRows& sums) {
  with_count(count, [&](auto queries_at_once) {
    constexpr int kQueries = decltype(queries_at_once)::kValue;
    int64_t c = 0;
    for (; c + 16 * kTileVectors <= columns; c += 16 * kTileVectors)
      value_tile<kQueries, kTileVectors>(weights, values.from(c), positions,
                                         {sums.first + c, sums.stride});
    for (; c < columns; c += 16)
      value_tile<kQueries, 1>(weights, values.from(c), positions, {sums.first + c, sums.stride});
  });
}

}  // namespace qd::QD_ISA
