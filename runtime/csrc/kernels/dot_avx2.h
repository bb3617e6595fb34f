// Integer products of 16 outputs with AVX2, or AVX-VNNI where QD_AVXVNNI is set. Meaning of each
// function: dot_portable.h.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels/vec_avx2.h"

namespace qd::QD_ISA {

struct I {
  __m256i lo, hi;
};
struct W {
  __m256i lo, hi;
};

QD_INLINE I whole(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
QD_INLINE V to_float(I s) { return {_mm256_cvtepi32_ps(s.lo), _mm256_cvtepi32_ps(s.hi)}; }

QD_INLINE W codes_small(const uint8_t* p) {
  const __m256i* q = reinterpret_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
QD_INLINE void codes4(const uint8_t* p, W& low, W& high) {
  const W bytes = codes_small(p);
  const __m256i mask = _mm256_set1_epi8(15);
  low = {_mm256_and_si256(bytes.lo, mask), _mm256_and_si256(bytes.hi, mask)};
  high = {_mm256_and_si256(_mm256_srli_epi16(bytes.lo, 4), mask),
          _mm256_and_si256(_mm256_srli_epi16(bytes.hi, 4), mask)};
}
QD_INLINE __m256i merge_high_bits(__m256i low, __m256i shifted) {
  return _mm256_or_si256(low, _mm256_and_si256(shifted, _mm256_set1_epi8(0x30)));
}
QD_INLINE void codes6(const uint8_t* p, W quads[4]) {
  codes4(p, quads[0], quads[1]);
  codes4(p + 64, quads[2], quads[3]);
  const W bytes = codes_small(p + 128);
  quads[0].lo = merge_high_bits(quads[0].lo, _mm256_slli_epi16(bytes.lo, 4));
  quads[0].hi = merge_high_bits(quads[0].hi, _mm256_slli_epi16(bytes.hi, 4));
  quads[1].lo = merge_high_bits(quads[1].lo, _mm256_slli_epi16(bytes.lo, 2));
  quads[1].hi = merge_high_bits(quads[1].hi, _mm256_slli_epi16(bytes.hi, 2));
  quads[2].lo = merge_high_bits(quads[2].lo, bytes.lo);
  quads[2].hi = merge_high_bits(quads[2].hi, bytes.hi);
  quads[3].lo = merge_high_bits(quads[3].lo, _mm256_srli_epi16(bytes.lo, 2));
  quads[3].hi = merge_high_bits(quads[3].hi, _mm256_srli_epi16(bytes.hi, 2));
}

QD_INLINE __m256i four_columns(const int8_t* a) {
  int32_t four;
  std::memcpy(&four, a, 4);
  return _mm256_set1_epi32(four);
}

#if defined(QD_AVXVNNI)

QD_INLINE W codes8(const uint8_t* p) { return codes_small(p); }
QD_INLINE I dot(I s, W w, const int8_t* a) {
  const __m256i four = four_columns(a);
  return {_mm256_dpbusd_avx_epi32(s.lo, w.lo, four), _mm256_dpbusd_avx_epi32(s.hi, w.hi, four)};
}
constexpr int32_t kZero8 = 128;
QD_INLINE I dot8(I s, W w, const int8_t* a) { return dot(s, w, a); }

#else

QD_INLINE __m256i add_products(__m256i s, __m256i w, __m256i a) {
  // Two products of a code below 64 (or of 128 at most, in dot8) and a value within 127 fit 16
  // bits.
  const __m256i pairs = _mm256_maddubs_epi16(w, a);
  return _mm256_add_epi32(s, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
QD_INLINE I dot(I s, W w, const int8_t* a) {
  const __m256i four = four_columns(a);
  return {add_products(s.lo, w.lo, four), add_products(s.hi, w.hi, four)};
}
// Signed codes: the sign moves to the other factor, as maddubs wants one unsigned.
QD_INLINE W codes8(const uint8_t* p) {
  const W bytes = codes_small(p);
  const __m256i top = _mm256_set1_epi8(static_cast<char>(0x80));
  return {_mm256_xor_si256(bytes.lo, top), _mm256_xor_si256(bytes.hi, top)};
}
constexpr int32_t kZero8 = 0;
QD_INLINE I dot8(I s, W w, const int8_t* a) {
  const __m256i four = four_columns(a);
  return {add_products(s.lo, _mm256_abs_epi8(w.lo), _mm256_sign_epi8(four, w.lo)),
          add_products(s.hi, _mm256_abs_epi8(w.hi), _mm256_sign_epi8(four, w.hi))};
}

#endif

}  // namespace qd::QD_ISA
