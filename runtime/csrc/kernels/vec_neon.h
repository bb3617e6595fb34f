// Sixteen floats in four NEON registers. Meaning of each function: vec_portable.h.
#pragma once

#include <arm_neon.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/inline.h"

namespace qd::QD_ISA {

struct V {
  float32x4_t v[4];
};

// Applies an expression of the register number `i` to all four.
#define QD_LANES(expression)                              \
  V result;                                               \
  for (int i = 0; i < 4; ++i) result.v[i] = (expression); \
  return result

QD_INLINE V set1(float x) { QD_LANES(vdupq_n_f32(x)); }
QD_INLINE V zero() { return set1(0.0f); }
QD_INLINE V load(const float* p) { QD_LANES(vld1q_f32(p + 4 * i)); }
QD_INLINE void store(float* p, V a) {
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.v[i]);
}
QD_INLINE V load_n(const float* p, int n) {
  float lanes[16] = {};
  std::memcpy(lanes, p, static_cast<size_t>(n) * 4);
  return load(lanes);
}
QD_INLINE void store_n(float* p, V a, int n) {
  float lanes[16];
  store(lanes, a);
  std::memcpy(p, lanes, static_cast<size_t>(n) * 4);
}
QD_INLINE V add(V a, V b) { QD_LANES(vaddq_f32(a.v[i], b.v[i])); }
QD_INLINE V sub(V a, V b) { QD_LANES(vsubq_f32(a.v[i], b.v[i])); }
QD_INLINE V mul(V a, V b) { QD_LANES(vmulq_f32(a.v[i], b.v[i])); }
QD_INLINE V div(V a, V b) { QD_LANES(vdivq_f32(a.v[i], b.v[i])); }
QD_INLINE V fma(V a, V b, V c) { QD_LANES(vfmaq_f32(c.v[i], a.v[i], b.v[i])); }
// vmaxq and vminq treat NaN and signed zeros unlike x86.
QD_INLINE V max(V a, V b) { QD_LANES(vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i])); }
QD_INLINE V min(V a, V b) { QD_LANES(vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i])); }
QD_INLINE V abs(V a) { QD_LANES(vabsq_f32(a.v[i])); }
QD_INLINE V sqrt(V a) { QD_LANES(vsqrtq_f32(a.v[i])); }
QD_INLINE V round_even(V a) { QD_LANES(vrndnq_f32(a.v[i])); }
QD_INLINE V select_gt(V a, V b, V x, V y) {
  QD_LANES(vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), x.v[i], y.v[i]));
}
QD_INLINE uint32_t mask_gt(V a, V b) {
  const uint32_t weights[4] = {1, 2, 4, 8};
  uint32_t mask = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32x4_t bits = vandq_u32(vcgtq_f32(a.v[i], b.v[i]), vld1q_u32(weights));
    mask |= vaddvq_u32(bits) << (4 * i);
  }
  return mask;
}
QD_INLINE V power_of_two(V n) {
  const int32x4_t bias = vdupq_n_s32(127);
  QD_LANES(vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n.v[i]), bias), 23)));
}
QD_INLINE V load_i8(const int8_t* p) {
  const int8x16_t bytes = vld1q_s8(p);
  const int16x8_t lo = vmovl_s8(vget_low_s8(bytes)), hi = vmovl_high_s8(bytes);
  return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(lo))), vcvtq_f32_s32(vmovl_high_s16(lo)),
           vcvtq_f32_s32(vmovl_s16(vget_low_s16(hi))), vcvtq_f32_s32(vmovl_high_s16(hi))}};
}
QD_INLINE V load_u8(const uint8_t* p) {
  const uint8x16_t bytes = vld1q_u8(p);
  const uint16x8_t lo = vmovl_u8(vget_low_u8(bytes)), hi = vmovl_high_u8(bytes);
  return {{vcvtq_f32_u32(vmovl_u16(vget_low_u16(lo))), vcvtq_f32_u32(vmovl_high_u16(lo)),
           vcvtq_f32_u32(vmovl_u16(vget_low_u16(hi))), vcvtq_f32_u32(vmovl_high_u16(hi))}};
}
QD_INLINE V load_i32(const int32_t* p) { QD_LANES(vcvtq_f32_s32(vld1q_s32(p + 4 * i))); }
QD_INLINE void store_i8(int8_t* p, V a) {
  const int16x8_t lo =
      vcombine_s16(vmovn_s32(vcvtq_s32_f32(a.v[0])), vmovn_s32(vcvtq_s32_f32(a.v[1])));
  const int16x8_t hi =
      vcombine_s16(vmovn_s32(vcvtq_s32_f32(a.v[2])), vmovn_s32(vcvtq_s32_f32(a.v[3])));
  vst1q_s8(p, vcombine_s8(vmovn_s16(lo), vmovn_s16(hi)));
}
QD_INLINE V load_half(const uint16_t* p) {
  QD_LANES(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))));
}
QD_INLINE void store_half(uint16_t* p, V a) {
  for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.v[i])));
}
QD_INLINE float half_to_float(uint16_t half) {
  return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(half))), 0);
}
QD_INLINE uint16_t float_to_half(float value) {
  return vget_lane_u16(vreinterpret_u16_f16(vcvt_f16_f32(vdupq_n_f32(value))), 0);
}

QD_INLINE float sum(V a) {
  const float32x4_t lo = vaddq_f32(a.v[0], a.v[2]), hi = vaddq_f32(a.v[1], a.v[3]);
  const float32x4_t four = vaddq_f32(lo, hi);
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
QD_INLINE float max_of(V a) {
  float v[16];
  store(v, a);
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i) v[i] = v[i] > v[i + half] ? v[i] : v[i + half];
  return v[0];
}
QD_INLINE float fma(float a, float b, float c) { return std::fma(a, b, c); }

#undef QD_LANES

}  // namespace qd::QD_ISA
