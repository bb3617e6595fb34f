#include "kernels/top.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>

namespace qd {
namespace {

// Order-preserving: larger floats give larger numbers; NaN the largest.
uint32_t sortable(float value) {
  if (std::isnan(value)) return 0xffffffff;
  uint32_t bits;
  value += 0.0f;  // -0 and 0 are equal
  std::memcpy(&bits, &value, 4);
  return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

TopKey key_of(float value, int64_t id) {
  return static_cast<uint64_t>(sortable(value)) << 32 | (0xffffffff - static_cast<uint32_t>(id));
}

}  // namespace

float top_value(TopKey key) {
  uint32_t bits = static_cast<uint32_t>(key >> 32);
  if (bits == 0xffffffff) return NAN;
  bits = bits & 0x80000000 ? bits & 0x7fffffff : ~bits;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

int64_t top_id(TopKey key) { return 0xffffffff - static_cast<uint32_t>(key); }

int64_t select_top(const float* logits, const float* maxima, int64_t count, int64_t first_id,
                   int64_t top, TopKey* work, TopKey* keys) {
  const int64_t blocks = (count + kTopBlock - 1) / kTopBlock;
  // At least `top` logits are not below the maximum of rank `top`, so nothing below it can win.
  uint32_t limit = 0;
  if (top < blocks) {
    for (int64_t b = 0; b < blocks; ++b) work[b] = sortable(maxima[b]);
    std::nth_element(work, work + top - 1, work + blocks, std::greater<TopKey>());
    limit = static_cast<uint32_t>(work[top - 1]);
  }
  int64_t found = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    if (sortable(maxima[b]) < limit) continue;
    const int64_t end = std::min(count, (b + 1) * kTopBlock);
    for (int64_t i = b * kTopBlock; i < end; ++i)
      if (sortable(logits[i]) >= limit) work[found++] = key_of(logits[i], first_id + i);
  }
  merge_top(work, found, top);
  const int64_t kept = std::min(found, top);
  std::copy(work, work + kept, keys);
  return kept;
}

void merge_top(TopKey* keys, int64_t count, int64_t top) {
  std::partial_sort(keys, keys + std::min(count, top), keys + count, std::greater<TopKey>());
}

}  // namespace qd
