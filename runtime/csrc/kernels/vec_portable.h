// Sixteen floats in plain C++: the meaning of every function of the other vec_*.h, and the
// fallback.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/inline.h"

namespace qd::QD_ISA {

struct V {
  float v[16];
};

// Applies an expression of the lane number `i` to all lanes.
#define QD_LANES(expression)                               \
  V result;                                                \
  for (int i = 0; i < 16; ++i) result.v[i] = (expression); \
  return result

QD_INLINE V set1(float x) { QD_LANES(x); }
QD_INLINE V zero() { return set1(0.0f); }
QD_INLINE V load(const float* p) { QD_LANES(p[i]); }
QD_INLINE void store(float* p, V a) { std::memcpy(p, a.v, sizeof(a.v)); }
// The first n lanes (0 <= n <= 16); the others read as 0 and are not written.
QD_INLINE V load_n(const float* p, int n) { QD_LANES(i < n ? p[i] : 0.0f); }
QD_INLINE void store_n(float* p, V a, int n) {
  for (int i = 0; i < n; ++i) p[i] = a.v[i];
}
QD_INLINE V add(V a, V b) { QD_LANES(a.v[i] + b.v[i]); }
QD_INLINE V sub(V a, V b) { QD_LANES(a.v[i] - b.v[i]); }
QD_INLINE V mul(V a, V b) { QD_LANES(a.v[i] * b.v[i]); }
QD_INLINE V div(V a, V b) { QD_LANES(a.v[i] / b.v[i]); }
// a * b + c, rounded once.
QD_INLINE V fma(V a, V b, V c) { QD_LANES(std::fma(a.v[i], b.v[i], c.v[i])); }
// As x86: the second operand where one is NaN.
QD_INLINE V max(V a, V b) { QD_LANES(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
QD_INLINE V min(V a, V b) { QD_LANES(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
QD_INLINE V abs(V a) { QD_LANES(std::fabs(a.v[i])); }
QD_INLINE V sqrt(V a) { QD_LANES(std::sqrt(a.v[i])); }
QD_INLINE V round_even(V a) { QD_LANES(std::nearbyint(a.v[i])); }
// a > b ? x : y, lane by lane; y where one is NaN.
QD_INLINE V select_gt(V a, V b, V x, V y) { QD_LANES(a.v[i] > b.v[i] ? x.v[i] : y.v[i]); }
// One bit per lane, set where a > b.
QD_INLINE uint32_t mask_gt(V a, V b) {
  uint32_t mask = 0;
  for (int i = 0; i < 16; ++i) mask |= static_cast<uint32_t>(a.v[i] > b.v[i]) << i;
  return mask;
}
// 2 to the power of n, for whole n in [-126, 127].
QD_INLINE V power_of_two(V n) {
  V result;
  for (int i = 0; i < 16; ++i) {
    const int32_t bits = (static_cast<int32_t>(n.v[i]) + 127) * (1 << 23);
    std::memcpy(&result.v[i], &bits, 4);
  }
  return result;
}
QD_INLINE V load_i8(const int8_t* p) { QD_LANES(static_cast<float>(p[i])); }
QD_INLINE V load_u8(const uint8_t* p) { QD_LANES(static_cast<float>(p[i])); }
QD_INLINE V load_i32(const int32_t* p) { QD_LANES(static_cast<float>(p[i])); }
// Whole values in [-128, 127].
QD_INLINE void store_i8(int8_t* p, V a) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(a.v[i]);
}

QD_INLINE float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = (half >> 10) & 31, mantissa = half & 1023;
  float result;
  if (exponent == 0) {
    result = std::ldexp(static_cast<float>(mantissa), -24);
    return sign ? -result : result;
  }
  const uint32_t bits =
      sign | (exponent == 31 ? 0x7f800000 | (mantissa << 13) | (mantissa ? 0x400000 : 0)
                             : ((exponent + 112) << 23) | (mantissa << 13));
  std::memcpy(&result, &bits, 4);
  return result;
}
// To nearest, ties to even, as the hardware instructions.
QD_INLINE uint16_t float_to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7e00 | ((bits >> 13) & 1023);
  if (bits >= 0x477ff000) return sign | 0x7c00;
  if (bits < 0x38800000) {  // below the smallest normal half: a multiple of 2^-24
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    const uint16_t units = static_cast<uint16_t>(std::nearbyint(std::ldexp(magnitude, 24)));
    return static_cast<uint16_t>(sign | units);
  }
  const uint32_t rounded = bits - 0x38000000 + 0xfff + ((bits >> 13) & 1);
  return static_cast<uint16_t>(sign | (rounded >> 13));
}
QD_INLINE V load_half(const uint16_t* p) { QD_LANES(half_to_float(p[i])); }
QD_INLINE void store_half(uint16_t* p, V a) {
  for (int i = 0; i < 16; ++i) p[i] = float_to_half(a.v[i]);
}

// Sum and maximum of all lanes, halves folded on each other: 8 apart, then 4, 2, 1.
QD_INLINE float sum(V a) {
  float* v = a.v;
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i) v[i] = v[i] + v[i + half];
  return v[0];
}
QD_INLINE float max_of(V a) {
  float* v = a.v;
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i) v[i] = v[i] > v[i + half] ? v[i] : v[i + half];
  return v[0];
}
QD_INLINE float fma(float a, float b, float c) { return std::fma(a, b, c); }

#undef QD_LANES

}  // namespace qd::QD_ISA
