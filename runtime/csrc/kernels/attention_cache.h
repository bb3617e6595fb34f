// One layer of the KV cache as attention sees it: addresses, writing a row, widening to float32.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/attention_tiles.h"
#include "kernels/kernels.h"
#include "kernels/rope.h"

namespace qd::QD_ISA {

inline float widen(float x) { return x; }
inline float widen(uint16_t x) { return half_to_float(x); }
inline float widen(int8_t x) { return static_cast<float>(x); }

inline void narrow(float* p, V v) { store(p, v); }
inline void narrow(uint16_t* p, V v) { store_half(p, v); }
inline void narrow(int8_t* p, V v) { store_i8(p, v); }

// KvLayer (kernels.h) with values of type Stored. Scales are null unless Stored is int8.
template <class Stored>
struct KvView {
  static constexpr bool kScaled = sizeof(Stored) == 1;

  int64_t heads, dim;
  Stored* keys;
  float* key_scales;
  Stored* values;
  float* value_scales;

  explicit KvView(const KvLayer& layer) : heads(layer.kv_heads), dim(layer.head_dim) {
    const int64_t scales = kScaled ? layer.capacity * heads : 0;
    const int64_t stored = layer.capacity * heads * dim;
    keys = reinterpret_cast<Stored*>(layer.base);
    float* after_keys = reinterpret_cast<float*>(keys + stored);
    key_scales = kScaled ? after_keys : nullptr;
    values = reinterpret_cast<Stored*>(after_keys + scales);
    value_scales = kScaled ? reinterpret_cast<float*>(values + stored) : nullptr;
  }

  KeyGroups<Stored> key_groups(int64_t group, int64_t head) const {
    const int64_t at = group * heads + head;
    return {keys + at * dim * 16, heads * dim * 16, dim, kScaled ? key_scales + at * 16 : nullptr,
            heads * 16};
  }
  ValueRows<Stored> value_rows(int64_t slot, int64_t head) const {
    return {values + (slot * heads + head) * dim, heads * dim};
  }
  float* value_scale(int64_t slot, int64_t head) const {
    return value_scales + slot * heads + head;
  }
};

// The scale of an int8 row: its largest magnitude is code 127. NaN for a row that is not finite, so
// that whoever sees this row gets NaN, as with the wider types.
inline float int8_scale(const float* x, int64_t dim) {
  V largest = zero(), poison = zero();
  for (int64_t d = 0; d < dim; d += 16) {
    const V v = load_columns(x + d, static_cast<int>(dim - d < 16 ? dim - d : 16));
    largest = max(largest, abs(v));
    poison = fma(v, zero(), poison);
  }
  const bool finite = sum(poison) == 0;
  return finite ? max_of(largest) / 127.0f : std::numeric_limits<float>::quiet_NaN();
}

// Writes x [dim] in the type of the cache, value d to target[d * stride]. Returns the scale of
// int8.
template <class Stored>
inline float write_head(const float* x, int64_t dim, Stored* target, int64_t stride) {
  float scale = 1;
  V divisor = set1(1);
  if constexpr (sizeof(Stored) == 1) {
    scale = int8_scale(x, dim);
    if (scale > 0) divisor = set1(scale);
  }
  const bool poisoned = scale != scale;
  for (int64_t d = 0; d < dim; d += 16) {
    const int n = static_cast<int>(dim - d < 16 ? dim - d : 16);
    V v = load_columns(x + d, n);
    if constexpr (sizeof(Stored) == 1) {
      // Clamped because the quotient may exceed 127 where the scale is subnormal.
      v = max(set1(-127), min(set1(127), round_even(div(v, divisor))));
      if (poisoned) v = zero();
    }
    Stored narrowed[16];
    narrow(narrowed, v);
    if (stride == 1)
      std::memcpy(target + d, narrowed, static_cast<size_t>(n) * sizeof(Stored));
    else
      for (int i = 0; i < n; ++i) target[(d + i) * stride] = narrowed[i];
  }
  return scale;
}

// Writes key and value of row r into slot past + r. rotated: room for one head.
template <class Stored>
inline void write_row(const AttentionArgs& args, const KvView<Stored>& cache, int64_t r,
                      float* rotated) {
  const int64_t slot = args.past + r, lane = slot % 16, dim = cache.dim;
  for (int64_t h = 0; h < cache.heads; ++h) {
    const float* key = args.k + r * args.k_stride + h * dim;
    if (args.rope) {
      const float* cosines = args.rope + r * 2 * args.pairs;
      rotate_head(key, dim, cosines, cosines + args.pairs, args.pairs, rotated);
      key = rotated;
    }
    const KeyGroups<Stored> group = cache.key_groups(slot / 16, h);
    const float key_scale = write_head(key, dim, group.first + lane, 16);
    const ValueRows<Stored> row = cache.value_rows(slot, h);
    const float* value = args.v + r * args.v_stride + h * dim;
    const float value_scale = write_head(value, dim, row.first, 1);
    if constexpr (KvView<Stored>::kScaled) {
      group.scales[lane] = key_scale;
      *cache.value_scale(slot, h) = value_scale;
    }
  }
}

// The same keys as float32: `groups` of them, one after the other in out.
template <class Stored>
inline KeyGroups<float> widen_keys(const KeyGroups<Stored>& keys, int64_t groups, float* out) {
  const int64_t size = keys.dim * 16;
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t i = 0; i < size; i += 16)
      store(out + g * size + i, load_stored(keys.first + g * keys.stride + i));
  return {out, size, keys.dim, keys.scales, keys.scale_stride};
}

// The same values as float32: `positions` rows of `dim` values, padded with zeros to `columns`.
template <class Stored>
inline ValueRows<float> widen_values(const ValueRows<Stored>& values, int64_t positions,
                                     int64_t dim, int64_t columns, float* out) {
  for (int64_t p = 0; p < positions; ++p) {
    const Stored* row = values.first + p * values.stride;
    float* target = out + p * columns;
    int64_t d = 0;
    for (; d + 16 <= dim; d += 16) store(target + d, load_stored(row + d));
    for (; d < dim; ++d) target[d] = widen(row[d]);
    for (; d < columns; ++d) target[d] = 0;
  }
  return {out, columns};
}

}  // namespace qd::QD_ISA
