// Tiles: R rows of activations against NB blocks of 16 outputs, over all columns.
//
// Per row and output the float sum is acc = fma(sum of a group, scale of weight * scale of
// activation, acc), then, in formats with a minimum, acc = fma(minimum, scaled sum of activations,
// acc); groups in ascending order. R and NB change nothing of that: they decide how often a loaded
// value is used.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"
#include "kernels/prefetch.h"
#include "kernels/rounded.h"

namespace qd::QD_ISA {

// Which part of the next records a tile asks for while it works: those `bytes` further on, one
// group in `tiles`, so that all tiles of a pair of blocks together ask for everything, evenly. The
// hardware's own prefetching leaves half of the memory bandwidth idle when a group takes long.
struct Ahead {
  size_t bytes = 0;  // 0: nothing
  int64_t tile = 0;
  int64_t tiles = 1;

  bool wants(int64_t group) const { return bytes && group % tiles == tile; }
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
  static constexpr int kCodeBytes = kSixBits ? 192 : kFourBits ? 256 : 512;
  static constexpr bool kHasZero = kSixBits || F == WeightFormat::kW4 || F == WeightFormat::kW8;
  static constexpr bool kSigned = F == WeightFormat::kW8;

  const uint8_t* codes = nullptr;
  const uint8_t* scales = nullptr;
  const uint8_t* minimums = nullptr;
  const uint8_t* super_scales = nullptr;
  const uint8_t* super_minimums = nullptr;

  Format() = default;
  Format(const uint8_t* record, int64_t k) {
    const int64_t groups = k / kWidth;
    codes = record;
    scales = codes + groups * kCodeBytes;
    minimums = scales + groups * (kTwoLevel ? 16 : 32);
    super_scales = kMinimum ? minimums + groups * 16 : minimums;
    super_minimums = super_scales + k / 256 * 32;
  }

  // The record `bytes` further on.
  Format moved(size_t bytes) const {
    Format other = *this;
    other.codes += bytes;
    other.scales += bytes;
    other.minimums += bytes;
    other.super_scales += bytes;
    other.super_minimums += bytes;
    return other;
  }
  const uint8_t* group(int64_t g) const { return codes + g * kCodeBytes; }
  // Asks for the codes and scales of group g.
  void prefetch(int64_t g) const {
    for (int line = 0; line < kCodeBytes; line += 64) QD_PREFETCH(group(g) + line);
    constexpr int kScaleBytes = kTwoLevel ? 16 : 32;
    if (g % (64 / kScaleBytes)) return;
    QD_PREFETCH(scales + kScaleBytes * g);
    if constexpr (kMinimum) QD_PREFETCH(minimums + kScaleBytes * g);
  }

  V scale(int64_t g) const {
    if constexpr (kSixBits)
      return mul(load_halves(super_scales + g / 16 * 32),
                 load_i8(reinterpret_cast<const int8_t*>(scales) + 16 * g));
    else if constexpr (kTwoLevel)
      return mul(load_halves(super_scales + g / 8 * 32), load_u8(scales + 16 * g));
    else
      return load_halves(scales + 32 * g);
  }
  // What is added per unit of activation.
  V minimum(int64_t g) const {
    if constexpr (kTwoLevel)
      return sub(zero(), mul(load_halves(super_minimums + g / 8 * 32), load_u8(minimums + 16 * g)));
    else
      return load_halves(minimums + 32 * g);
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
inline void sum_group(const uint8_t* const codes[NB], const int8_t* a, I (&s)[NB][R]) {
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

// Where the integer sums of one group start.
template <WeightFormat F, int R, int NB>
inline void start_sums(const int32_t* starts, int part, I (&s)[NB][R]) {
  using Fmt = Format<F>;
  for (int r = 0; r < R; ++r) {
    const I start = whole(Fmt::kHasZero ? starts[2 * r + part] : 0);
    for (int b = 0; b < NB; ++b) s[b][r] = start;
  }
}

// Adds the groups of `x`: its group i, of weight group groups[i] (null: i), in ascending order.
template <WeightFormat F, int R, int NB>
inline void add_groups(const Format<F> (&records)[NB], const Ahead& ahead, const RoundedGroups& x,
                       const int32_t* groups, int64_t count, V (&sums)[NB][R]) {
  using Fmt = Format<F>;
  constexpr int kParts = 32 / Fmt::kWidth;  // weight groups per activation group
  V acc[NB][R];  // not `sums`, which might overlap with x for all that the compiler knows
  for (int b = 0; b < NB; ++b)
    for (int r = 0; r < R; ++r) acc[b][r] = sums[b][r];
  for (int64_t i = 0; i < count; ++i) {
    const int64_t cell = i * R, g = groups ? groups[i] : i;
    for (int part = 0; part < kParts; ++part) {
      const int64_t group = g * kParts + part;
      I s[NB][R];
      start_sums<F, R, NB>(x.starts + 2 * cell, part, s);
      const uint8_t* codes[NB];
      for (int b = 0; b < NB; ++b) {
        codes[b] = records[b].group(group);
        if (ahead.wants(i)) records[b].moved(ahead.bytes).prefetch(group);
      }
      sum_group<F, R, NB>(codes, x.codes + 32 * cell + 16 * part, s);
      for (int b = 0; b < NB; ++b) {
        const V scale = records[b].scale(group);
        for (int r = 0; r < R; ++r)
          acc[b][r] = fma(to_float(s[b][r]), mul(scale, set1(x.scale[cell + r])), acc[b][r]);
        if constexpr (Fmt::kMinimum) {
          const V minimum = records[b].minimum(group);
          for (int r = 0; r < R; ++r)
            acc[b][r] = fma(minimum, set1(x.scaled_sum[cell + r]), acc[b][r]);
        }
      }
    }
  }
  for (int b = 0; b < NB; ++b)
    for (int r = 0; r < R; ++r) sums[b][r] = acc[b][r];
}

// A tile of R rows (its height) against NB records. out[b][r]: 16 outputs. Second terms come first:
// to a sum of 0, the zeros of rows without them add nothing.
template <WeightFormat F, int R, int NB>
inline void tile_rounded(const uint8_t* const records[NB], const Ahead& ahead, int64_t k,
                         const RoundedTile& tile, V (&out)[NB][R]) {
  Format<F> formats[NB];
  V acc[NB][R];
  for (int b = 0; b < NB; ++b) {
    formats[b] = Format<F>(records[b], k);
    for (int r = 0; r < R; ++r) acc[b][r] = zero();
  }
  add_groups<F, R, NB>(formats, Ahead{}, tile.coarse, tile.coarse_groups, *tile.coarse_count, acc);
  add_groups<F, R, NB>(formats, ahead, tile.all, nullptr, k / 32, acc);
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
  for (int64_t c = 0; c < k; ++c)
    for (int b = 0; b < NB; ++b) {
      const uint8_t* p = records[b] + c * kBytes;
      if ((kBytes == 64 || c % 2 == 0) && ahead.wants(c / 2)) QD_PREFETCH(p + ahead.bytes);
      const V w =
          F == WeightFormat::kF32 ? load(reinterpret_cast<const float*>(p)) : load_halves(p);
      for (int r = 0; r < R; ++r) acc[b][r] = fma(w, set1(x[c * R + r]), acc[b][r]);
    }
  for (int b = 0; b < NB; ++b)
    for (int r = 0; r < R; ++r) out[b][r] = acc[b][r];
}

}  // namespace qd::QD_ISA
