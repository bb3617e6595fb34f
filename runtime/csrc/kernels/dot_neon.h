// Integer products of 16 outputs with NEON's dot product, and with its int8 matrix product for
// pairs of rows where QD_I8MM is set. Meaning of each function: dot_portable.h.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "kernels/vec_neon.h"

namespace qd::QD_ISA {

struct I {
  int32x4_t v[4];
};
struct W {
  int8x16_t v[4];
};

QD_INLINE I whole(int32_t x) {
  const int32x4_t four = vdupq_n_s32(x);
  return {{four, four, four, four}};
}
QD_INLINE V to_float(I s) {
  V result;
  for (int i = 0; i < 4; ++i) result.v[i] = vcvtq_f32_s32(s.v[i]);
  return result;
}

QD_INLINE void codes4(const uint8_t* p, W& low, W& high) {
  for (int i = 0; i < 4; ++i) {
    const uint8x16_t bytes = vld1q_u8(p + 16 * i);
    low.v[i] = vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15)));
    high.v[i] = vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4));
  }
}
QD_INLINE void codes6(const uint8_t* p, W quads[4]) {
  codes4(p, quads[0], quads[1]);
  codes4(p + 64, quads[2], quads[3]);
  const uint8x16_t mask = vdupq_n_u8(0x30);
  for (int i = 0; i < 4; ++i) {
    const uint8x16_t bytes = vld1q_u8(p + 128 + 16 * i);
    const uint8x16_t high[4] = {vshlq_n_u8(bytes, 4), vshlq_n_u8(bytes, 2), bytes,
                                vshrq_n_u8(bytes, 2)};
    for (int j = 0; j < 4; ++j)
      quads[j].v[i] = vorrq_s8(quads[j].v[i], vreinterpretq_s8_u8(vandq_u8(high[j], mask)));
  }
}
QD_INLINE W codes_small(const uint8_t* p) {
  W result;
  for (int i = 0; i < 4; ++i) result.v[i] = vreinterpretq_s8_u8(vld1q_u8(p + 16 * i));
  return result;
}
QD_INLINE W codes8(const uint8_t* p) {
  W result;
  for (int i = 0; i < 4; ++i)
    result.v[i] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(p + 16 * i), vdupq_n_u8(0x80)));
  return result;
}

QD_INLINE I dot(I s, W w, const int8_t* a) {
  int32_t four;
  std::memcpy(&four, a, 4);
  const int8x16_t columns = vreinterpretq_s8_s32(vdupq_n_s32(four));
  for (int i = 0; i < 4; ++i) s.v[i] = vdotq_s32(s.v[i], w.v[i], columns);
  return s;
}
constexpr int32_t kZero8 = 0;
QD_INLINE I dot8(I s, W w, const int8_t* a) { return dot(s, w, a); }

#if defined(QD_I8MM)

// The matrix product takes 2 outputs and 2 rows by 8 columns at once. Meanwhile the sums of rows r
// and r + 1 (r even) lie together: register i holds outputs 2 i and 2 i + 1, each of both rows.
template <int R>
QD_INLINE void to_row_pairs(I (&s)[R]) {
  for (int r = 0; r + 1 < R; r += 2) {
    const I a = s[r], b = s[r + 1];
    for (int i = 0; i < 4; ++i) {
      I& to = s[r + i / 2];
      to.v[i % 2 * 2] = vzip1q_s32(a.v[i], b.v[i]);
      to.v[i % 2 * 2 + 1] = vzip2q_s32(a.v[i], b.v[i]);
    }
  }
}

template <int R>
QD_INLINE void from_row_pairs(I (&s)[R]) {
  for (int r = 0; r + 1 < R; r += 2) {
    const I pairs[2] = {s[r], s[r + 1]};
    for (int i = 0; i < 4; ++i) {
      const I& from = pairs[i / 2];
      s[r].v[i] = vuzp1q_s32(from.v[i % 2 * 2], from.v[i % 2 * 2 + 1]);
      s[r + 1].v[i] = vuzp2q_s32(from.v[i % 2 * 2], from.v[i % 2 * 2 + 1]);
    }
  }
}

// Eight columns of every pair of rows; rows lie 32 bytes apart.
template <int R>
QD_INLINE void add_row_pairs(const W& low, const W& high, const int8_t* a, I (&s)[R]) {
  for (int i = 0; i < 4; ++i) {
    const int32x4_t l = vreinterpretq_s32_s8(low.v[i]), h = vreinterpretq_s32_s8(high.v[i]);
    const int8x16_t first = vreinterpretq_s8_s32(vzip1q_s32(l, h));
    const int8x16_t second = vreinterpretq_s8_s32(vzip2q_s32(l, h));
    for (int r = 0; r + 1 < R; r += 2) {
      const int8x16_t rows = vcombine_s8(vld1_s8(a + 32 * r), vld1_s8(a + 32 * (r + 1)));
      I& sums = s[r + i / 2];
      sums.v[i % 2 * 2] = vmmlaq_s32(sums.v[i % 2 * 2], first, rows);
      sums.v[i % 2 * 2 + 1] = vmmlaq_s32(sums.v[i % 2 * 2 + 1], second, rows);
    }
  }
}

#endif

}  // namespace qd::QD_ISA
