// The KV cache outside attention: sizes and the row move of a commit. Layout: KvLayer in kernels.h.
#include <cstring>

#include "kernels/kernels.h"

namespace qd {
namespace {

size_t element_bytes(KvType type) {
  switch (type) {
    case KvType::kF32: return 4;
    case KvType::kF16: return 2;
    case KvType::kI8: return 1;
  }
  return 0;
}

// One slot of a part stored 16 slots side by side, `parts` values per slot.
void move_lane(uint8_t* base, size_t bytes, size_t parts, size_t from, size_t to) {
  const uint8_t* source = base + ((from / 16) * parts * 16 + from % 16) * bytes;
  uint8_t* target = base + ((to / 16) * parts * 16 + to % 16) * bytes;
  for (size_t i = 0; i < parts; ++i, source += 16 * bytes, target += 16 * bytes)
    std::memcpy(target, source, bytes);
}

}  // namespace

size_t kv_head_bytes(KvType type, int64_t head_dim) {
  const size_t codes = 2 * static_cast<size_t>(head_dim) * element_bytes(type);
  const size_t scales = static_cast<size_t>(key_bands(head_dim)) + 1;
  return type == KvType::kI8 ? codes + scales * sizeof(float) : codes;
}

void move_rows(const KvLayer& layer, const int64_t* from, const int64_t* to, int64_t count) {
  const size_t bytes = element_bytes(layer.type);
  const size_t heads = static_cast<size_t>(layer.kv_heads);
  const size_t columns = heads * static_cast<size_t>(layer.head_dim);
  const size_t slots = static_cast<size_t>(layer.capacity);
  const size_t bands = heads * static_cast<size_t>(key_bands(layer.head_dim));
  const bool scaled = layer.type == KvType::kI8;
  uint8_t* keys = layer.base;
  uint8_t* key_scales = keys + slots * columns * bytes;
  uint8_t* values = key_scales + (scaled ? slots * bands * sizeof(float) : 0);
  uint8_t* value_scales = values + slots * columns * bytes;
  for (int64_t i = 0; i < count; ++i) {
    const size_t source = static_cast<size_t>(from[i]), target = static_cast<size_t>(to[i]);
    if (source == target) continue;
    move_lane(keys, bytes, columns, source, target);
    const size_t row = columns * bytes, scale_row = heads * sizeof(float);
    std::memcpy(values + target * row, values + source * row, row);
    if (!scaled) continue;
    move_lane(key_scales, sizeof(float), bands, source, target);
    std::memcpy(value_scales + target * scale_row, value_scales + source * scale_row, scale_row);
  }
}

}  // namespace qd
