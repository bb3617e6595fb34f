// One layer of the KV cache as kernels see it: addresses, widening to float32.
#pragma once

#include <cstdint>

#include "kernels/attention_tiles.h"
#include "kernels/kernels.h"

namespace qd::QD_ISA {

inline float widen(float x) { return x; }
inline float widen(uint16_t x) { return half_to_float(x); }
inline float widen(int8_t x) { return static_cast<float>(x); }

// KvLayer (kernels.h) with values of type Stored. Scales are null unless Stored is int8.
template <class Stored>
struct KvView {
  static constexpr bool kScaled = sizeof(Stored) == 1;

  int64_t heads, dim, bands;
  Stored* keys;
  float* key_scales;
  Stored* values;
  float* value_scales;

  explicit KvView(const KvLayer& layer)
      : heads(layer.kv_heads), dim(layer.head_dim), bands(key_bands(dim)) {
    const int64_t scales = kScaled ? layer.capacity * heads * bands : 0;
    const int64_t stored = layer.capacity * heads * dim;
    keys = reinterpret_cast<Stored*>(layer.base);
    float* after_keys = reinterpret_cast<float*>(keys + stored);
    key_scales = kScaled ? after_keys : nullptr;
    values = reinterpret_cast<Stored*>(after_keys + scales);
    value_scales = kScaled ? reinterpret_cast<float*>(values + stored) : nullptr;
  }

  KeyGroups<Stored> key_groups(int64_t group, int64_t head) const {
    const int64_t at = group * heads + head;
    return {keys + at * dim * 16, heads * dim * 16, dim,
            kScaled ? key_scales + at * bands * 16 : nullptr, heads * bands * 16};
  }
  ValueRows<Stored> value_rows(int64_t slot, int64_t head) const {
    return {values + (slot * heads + head) * dim, heads * dim};
  }
  float* value_scale(int64_t slot, int64_t head) const {
    return value_scales + slot * heads + head;
  }
};

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
