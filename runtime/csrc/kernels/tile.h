// Tiles: R rows of activations against NB blocks of 16 outputs, over all columns.
//
// Per row and output the float sum is acc = fma(sum of a group, scale of weight * scale of
// activation, acc), then, in formats with a minimum, acc = fma(minimum, scaled sum of activations,
// acc); groups in ascending order. R and NB change nothing of that: they decide how often a loaded
// value is used.
#pragma once

#include <cstdint>

#include "kernels/inline.h"
#include "kernels/kernels.h"
#include "kernels/prefetch.h"
#include "kernels/rounded.h"

namespace qd::QD_ISA {

// What a tile asks for while it works: `lines` cache lines from `next` on with every group. The
// hardware's own prefetching leaves half of the memory bandwidth idle when a group takes long.
struct Ahead {
  const uint8_t* next = nullptr;
  int64_t lines = 0;
};

inline V load_halves(const uint8_t* p) { return load_half(reinterpret_cast<const uint16_t*>(p)); }

// Sections of a record (docs/weight-layout.md) and how to read a group's scale and minimum.
// Codes: kCodeBytes per kWidth columns. kHasZero: a number is subtracted from each code.
template <WeightFormat F>
struct Format {
  static constexpr bool kSixBits = F == WeightFormat::kW6K;
  static constexpr bool kFourBits =
      F == WeightFormat::kW4 || F == WeightFormat::kW4M || F == WeightFormat::kW4K;
  static constexpr bool kTwoLevel =
      F == WeightFormat::kW4K || F == WeightFormat::kW8K || F == WeightFormat::kW6K;
  static constexpr bool kMinimum = F == WeightFormat::kW4M || F == WeightFormat::kW4K ||
                                   F == WeightFormat::kW8M || F == WeightFormat::kW8K;
  static constexpr int kWidth = kSixBits ? 16 : 32;
  static constexpr int kParts = 32 / kWidth;  // groups per group of activations
  static constexpr int kCodeBytes = kSixBits ? 192 : kFourBits ? 256 : 512;
  static constexpr bool kHasZero = kSixBits || F == WeightFormat::kW4 || F == WeightFormat::kW8;
  static constexpr bool kSigned = F == WeightFormat::kW8;

  // Where sections begin after the codes; the same in every record.
  int64_t scales;
  int64_t minimums;
  int64_t super_scales;
  int64_t super_minimums;

  explicit Format(int64_t k) {
    const int64_t groups = k / kWidth;
    scales = groups * kCodeBytes;
    minimums = scales + groups * (kTwoLevel ? 16 : 32);
    super_scales = kMinimum ? minimums + groups * 16 : minimums;
    super_minimums = super_scales + k / 256 * 32;
  }

  V scale(const uint8_t* record, int64_t g) const {
    const uint8_t* const level = record + super_scales + (kSixBits ? g / 16 : g / 8) * 32;
    if constexpr (kSixBits)
      return mul(load_halves(level),
                 load_i8(reinterpret_cast<const int8_t*>(record) + scales + 16 * g));
    else if constexpr (kTwoLevel)
      return mul(load_halves(level), load_u8(record + scales + 16 * g));
    else
      return load_halves(record + scales + 32 * g);
  }
  // What is added per unit of activation.
  V minimum(const uint8_t* record, int64_t g) const {
    if constexpr (kTwoLevel)
      return sub(zero(), mul(load_halves(record + super_minimums + g / 8 * 32),
                             load_u8(record + minimums + 16 * g)));
    else
      return load_halves(record + minimums + 32 * g);
  }
};

// Two quads of NB blocks, eight columns of R rows that lie 32 bytes apart: s[b][r] += w[b] . a[r].
template <bool kSigned, int R, int NB>
inline void add_quads(const W (&low)[NB], const W (&high)[NB], const int8_t* a, I (&s)[NB][R]) {
  int single = 0;  // the rows from here on are multiplied one by one
#if defined(QD_I8MM)
  for (int b = 0; b < NB; ++b) add_row_pairs<R>(low[b], high[b], a, s[b]);
  single = R / 2 * 2;
#endif
  for (int half = 0; half < 2; ++half)
    for (int r = single; r < R; ++r)
      for (int b = 0; b < NB; ++b) {
        const int8_t* const four = a + 32 * r + 4 * half;
        const W w = half ? high[b] : low[b];
        s[b][r] = kSigned ? dot8(s[b][r], w, four) : dot(s[b][r], w, four);
      }
}

// The integer sums of one group of 16 or 32 columns: R rows by NB blocks.
// a: codes of the first row's group; rows lie 32 bytes apart.
template <WeightFormat F, int R, int NB>
QD_INLINE void sum_group(const uint8_t* const codes[NB], const int8_t* a, I (&s)[NB][R]) {
  using Fmt = Format<F>;
  constexpr int kSteps = Fmt::kWidth / 8;
  W quads[NB][4];
  if constexpr (Fmt::kSixBits)
    for (int b = 0; b < NB; ++b) codes6(codes[b], quads[b]);
#if defined(QD_I8MM)
  for (int b = 0; b < NB; ++b) to_row_pairs<R>(s[b]);
#endif
#pragma GCC unroll 4
  for (int z = 0; z < kSteps; ++z) {
    W low[NB], high[NB];
    for (int b = 0; b < NB; ++b) {
      if constexpr (Fmt::kSixBits) {
        low[b] = quads[b][2 * z];
        high[b] = quads[b][2 * z + 1];
      } else if constexpr (Fmt::kFourBits) {
        codes4(codes[b] + 64 * z, low[b], high[b]);
      } else {
        low[b] = Fmt::kSigned ? codes8(codes[b] + 128 * z) : codes_small(codes[b] + 128 * z);
        high[b] =
            Fmt::kSigned ? codes8(codes[b] + 128 * z + 64) : codes_small(codes[b] + 128 * z + 64);
      }
    }
    add_quads<Fmt::kSigned, R, NB>(low, high, a + 8 * z, s);
  }
#if defined(QD_I8MM)
  for (int b = 0; b < NB; ++b) from_row_pairs<R>(s[b]);
#endif
}

// The zero of a format's codes, as the sums of this instruction set need it.
inline Zero zero_of(WeightFormat format) {
  switch (format) {
    case WeightFormat::kW4: return {8, false};
    case WeightFormat::kW6K: return {32, true};
    case WeightFormat::kW8: return {kZero8, false};
    default: return {0, false};
  }
}

// One group of 32 columns: x points at its codes and facts of R rows (RoundedGroups).
template <WeightFormat F, int R, int NB>
QD_INLINE void add_group(const uint8_t* const records[NB], const Format<F>& format,
                         const uint8_t* x, int64_t g, V (&acc)[NB][R]) {
  using Fmt = Format<F>;
  const GroupFacts* const facts = reinterpret_cast<const GroupFacts*>(x + 32 * R);
  for (int part = 0; part < Fmt::kParts; ++part) {
    const int64_t group = g * Fmt::kParts + part;
    I s[NB][R];
    for (int r = 0; r < R; ++r) {
      const I start = whole(Fmt::kHasZero ? facts[r].starts[part] : 0);
      for (int b = 0; b < NB; ++b) s[b][r] = start;
    }
    const uint8_t* codes[NB];
    for (int b = 0; b < NB; ++b) codes[b] = records[b] + group * Fmt::kCodeBytes;
    sum_group<F, R, NB>(codes, reinterpret_cast<const int8_t*>(x) + 16 * part, s);
    for (int b = 0; b < NB; ++b) {
      const V scale = format.scale(records[b], group);
      for (int r = 0; r < R; ++r)
        acc[b][r] = fma(to_float(s[b][r]), mul(scale, set1(facts[r].scale)), acc[b][r]);
      if constexpr (Fmt::kMinimum) {
        const V minimum = format.minimum(records[b], group);
        for (int r = 0; r < R; ++r) acc[b][r] = fma(minimum, set1(facts[r].scaled_sum), acc[b][r]);
      }
    }
  }
}

// A tile of R rows (its height) against NB records. out[b][r]: 16 outputs. Second terms come first:
// to a sum of 0, the zeros of rows without them add nothing.
template <WeightFormat F, int R, int NB>
inline void tile_rounded(const uint8_t* const records[NB], const Ahead& ahead, int64_t k,
                         const RoundedTile& tile, V (&out)[NB][R]) {
  constexpr int64_t kStride = 48 * R;
  const Format<F> format(k);
  V acc[NB][R];  // not `out`, which might overlap with x for all that the compiler knows
  for (int b = 0; b < NB; ++b)
    for (int r = 0; r < R; ++r) acc[b][r] = zero();
  const uint8_t* x = tile.coarse.memory;
  for (int32_t i = 0; i < *tile.coarse_count; ++i, x += kStride)
    add_group<F, R, NB>(records, format, x, tile.coarse_groups[i], acc);
  x = tile.all.memory;
  const uint8_t* next = ahead.next;
  for (int64_t g = 0; g < k / 32; ++g, x += kStride) {
    for (int64_t line = 0; line < ahead.lines; ++line, next += 64) QD_PREFETCH(next);
    add_group<F, R, NB>(records, format, x, g, acc);
  }
  for (int b = 0; b < NB; ++b)
    for (int r = 0; r < R; ++r) out[b][r] = acc[b][r];
}

// The same for dense weights: acc = fma(weight, activation, acc), columns in ascending order.
// x: [column][R].
template <WeightFormat F, int R, int NB>
inline void tile_dense(const uint8_t* const records[NB], const Ahead& ahead, int64_t k,
                       const float* x, V (&out)[NB][R]) {
  constexpr int kBytes = F == WeightFormat::kF32 ? 64 : 32;  // of 16 weights
  V acc[NB][R];
  for (int b = 0; b < NB; ++b)
    for (int r = 0; r < R; ++r) acc[b][r] = zero();
  const uint8_t* next = ahead.next;
  for (int64_t c = 0; c < k; ++c) {
    if (c % 32 == 0)
      for (int64_t line = 0; line < ahead.lines; ++line, next += 64) QD_PREFETCH(next);
    for (int b = 0; b < NB; ++b) {
      const uint8_t* p = records[b] + c * kBytes;
      const V w =
          F == WeightFormat::kF32 ? load(reinterpret_cast<const float*>(p)) : load_halves(p);
      for (int r = 0; r < R; ++r) acc[b][r] = fma(w, set1(x[c * R + r]), acc[b][r]);
    }
  }
  for (int b = 0; b < NB; ++b)
    for (int r = 0; r < R; ++r) out[b][r] = acc[b][r];
}

}  // namespace qd::QD_ISA
