// Integer products of 16 outputs in plain C++: the meaning of the other dot_*.h, and the fallback.
#pragma once

#include <cstdint>

#include "kernels/vec_portable.h"

namespace qd::QD_ISA {

// Sixteen 32-bit sums, one per output.
struct I {
  int32_t v[16];
};
// Codes of 16 outputs by four columns: output o, column b in byte 4 o + b.
struct W {
  int16_t v[64];
};

QD_INLINE I whole(int32_t x) {
  I result;
  for (int o = 0; o < 16; ++o) result.v[o] = x;
  return result;
}
QD_INLINE V to_float(I s) {
  V result;
  for (int o = 0; o < 16; ++o) result.v[o] = static_cast<float>(s.v[o]);
  return result;
}

// 64 bytes to two quads: the low and the high halves of the bytes.
QD_INLINE void codes4(const uint8_t* p, W& low, W& high) {
  for (int i = 0; i < 64; ++i) {
    low.v[i] = p[i] & 15;
    high.v[i] = p[i] >> 4;
  }
}
// 192 bytes to four quads.
QD_INLINE void codes6(const uint8_t* p, W quads[4]) {
  for (int j = 0; j < 4; ++j)
    for (int i = 0; i < 64; ++i) {
      const int low = (p[64 * (j / 2) + i] >> (4 * (j % 2))) & 15;
      quads[j].v[i] = static_cast<int16_t>(low | ((p[128 + i] >> (2 * j)) & 3) << 4);
    }
}
// 64 bytes below 64, as they are.
QD_INLINE W codes_small(const uint8_t* p) {
  W result;
  for (int i = 0; i < 64; ++i) result.v[i] = p[i];
  return result;
}
// 64 bytes of any value; only for dot8.
QD_INLINE W codes8(const uint8_t* p) {
  W result;
  for (int i = 0; i < 64; ++i) result.v[i] = static_cast<int16_t>(p[i] - 128);
  return result;
}

// s + w . a, where a holds the four columns of one row. Codes below 64.
QD_INLINE I dot(I s, W w, const int8_t* a) {
  for (int o = 0; o < 16; ++o)
    for (int b = 0; b < 4; ++b) s.v[o] += w.v[4 * o + b] * a[b];
  return s;
}
// What is still to be subtracted from codes8: dot8 with the start that follows from it sums
// (code - 128) * a.
constexpr int32_t kZero8 = 0;
QD_INLINE I dot8(I s, W w, const int8_t* a) { return dot(s, w, a); }

}  // namespace qd::QD_ISA
