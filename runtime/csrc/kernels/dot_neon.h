// Integer products of 16 outputs with NEON's dot product. Meaning of each function: dot_portable.h.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace qd::QD_ISA {

struct I {
  int32x4_t v[4];
};
struct W {
  int8x16_t v[4];
};

inline I whole(int32_t x) {
  const int32x4_t four = vdupq_n_s32(x);
  return {{four, four, four, four}};
}
inline V to_float(I s) {
  V result;
  for (int i = 0; i < 4; ++i) result.v[i] = vcvtq_f32_s32(s.v[i]);
  return result;
}

inline void codes4(const uint8_t* p, W& low, W& high) {
  for (int i = 0; i < 4; ++i) {
    const uint8x16_t bytes = vld1q_u8(p + 16 * i);
    low.v[i] = vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15)));
    high.v[i] = vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4));
  }
}
inline void codes6(const uint8_t* p, W quads[4]) {
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
inline W codes_small(const uint8_t* p) {
  W result;
  for (int i = 0; i < 4; ++i) result.v[i] = vreinterpretq_s8_u8(vld1q_u8(p + 16 * i));
  return result;
}
inline W codes8(const uint8_t* p) {
  W result;
  for (int i = 0; i < 4; ++i)
    result.v[i] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(p + 16 * i), vdupq_n_u8(0x80)));
  return result;
}

inline I dot(I s, W w, const int8_t* a) {
  int32_t four;
  std::memcpy(&four, a, 4);
  const int8x16_t columns = vreinterpretq_s8_s32(vdupq_n_s32(four));
  for (int i = 0; i < 4; ++i) s.v[i] = vdotq_s32(s.v[i], w.v[i], columns);
  return s;
}
inline I start8(int32_t) { return whole(0); }
inline I dot8(I s, W w, const int8_t* a) { return dot(s, w, a); }

}  // namespace qd::QD_ISA
