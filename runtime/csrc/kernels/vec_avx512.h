// Sixteen floats in one AVX-512 register. Meaning of each function: vec_portable.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/inline.h"

namespace qd::QD_ISA {

struct V {
  __m512 v;
};

QD_INLINE __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }

QD_INLINE V set1(float x) { return {_mm512_set1_ps(x)}; }
QD_INLINE V zero() { return {_mm512_setzero_ps()}; }
QD_INLINE V load(const float* p) { return {_mm512_loadu_ps(p)}; }
QD_INLINE void store(float* p, V a) { _mm512_storeu_ps(p, a.v); }
QD_INLINE V load_n(const float* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
QD_INLINE void store_n(float* p, V a, int n) { _mm512_mask_storeu_ps(p, first(n), a.v); }
QD_INLINE V add(V a, V b) { return {_mm512_add_ps(a.v, b.v)}; }
QD_INLINE V sub(V a, V b) { return {_mm512_sub_ps(a.v, b.v)}; }
QD_INLINE V mul(V a, V b) { return {_mm512_mul_ps(a.v, b.v)}; }
QD_INLINE V div(V a, V b) { return {_mm512_div_ps(a.v, b.v)}; }
QD_INLINE V fma(V a, V b, V c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
QD_INLINE V max(V a, V b) { return {_mm512_max_ps(a.v, b.v)}; }
QD_INLINE V min(V a, V b) { return {_mm512_min_ps(a.v, b.v)}; }
QD_INLINE V abs(V a) { return {_mm512_abs_ps(a.v)}; }
QD_INLINE V sqrt(V a) { return {_mm512_sqrt_ps(a.v)}; }
QD_INLINE V round_even(V a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
QD_INLINE V select_gt(V a, V b, V x, V y) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ), y.v, x.v)};
}
QD_INLINE uint32_t mask_gt(V a, V b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
QD_INLINE V power_of_two(V n) {
  const __m512i bits = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(bits, 23))};
}
QD_INLINE V load_i8(const int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
}
QD_INLINE V load_u8(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))};
}
QD_INLINE V load_i32(const int32_t* p) { return {_mm512_cvtepi32_ps(_mm512_loadu_si512(p))}; }
QD_INLINE void store_i8(int8_t* p, V a) {
  const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
QD_INLINE V load_half(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
QD_INLINE void store_half(uint16_t* p, V a) {
  const __m256i halves = _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), halves);
}
QD_INLINE float half_to_float(uint16_t half) { return _cvtsh_ss(half); }
QD_INLINE uint16_t float_to_half(float value) {
  return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
}

QD_INLINE float sum(V a) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
QD_INLINE float max_of(V a) {
  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
QD_INLINE float fma(float a, float b, float c) {
  return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
}

}  // namespace qd::QD_ISA
