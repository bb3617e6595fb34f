// Integer products of 16 outputs with AVX-512 VNNI. Meaning of each function: dot_portable.h.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels/vec_avx512.h"

namespace qd::QD_ISA {

struct I {
  __m512i v;
};
struct W {
  __m512i v;
};

QD_INLINE I whole(int32_t x) { return {_mm512_set1_epi32(x)}; }
QD_INLINE V to_float(I s) { return {_mm512_cvtepi32_ps(s.v)}; }

QD_INLINE void codes4(const uint8_t* p, W& low, W& high) {
  const __m512i bytes = _mm512_loadu_si512(p), mask = _mm512_set1_epi8(15);
  low = {_mm512_and_si512(bytes, mask)};
  high = {_mm512_and_si512(_mm512_srli_epi16(bytes, 4), mask)};
}
QD_INLINE void codes6(const uint8_t* p, W quads[4]) {
  codes4(p, quads[0], quads[1]);
  codes4(p + 64, quads[2], quads[3]);
  const __m512i bytes = _mm512_loadu_si512(p + 128), mask = _mm512_set1_epi8(0x30);
  constexpr int kOrAnd = 0xf8;  // a | (b & c)
  quads[0].v = _mm512_ternarylogic_epi32(quads[0].v, _mm512_slli_epi16(bytes, 4), mask, kOrAnd);
  quads[1].v = _mm512_ternarylogic_epi32(quads[1].v, _mm512_slli_epi16(bytes, 2), mask, kOrAnd);
  quads[2].v = _mm512_ternarylogic_epi32(quads[2].v, bytes, mask, kOrAnd);
  quads[3].v = _mm512_ternarylogic_epi32(quads[3].v, _mm512_srli_epi16(bytes, 2), mask, kOrAnd);
}
QD_INLINE W codes_small(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
QD_INLINE W codes8(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }

QD_INLINE I dot(I s, W w, const int8_t* a) {
  int32_t four;
  std::memcpy(&four, a, 4);
  return {_mm512_dpbusd_epi32(s.v, w.v, _mm512_set1_epi32(four))};
}
constexpr int32_t kZero8 = 128;
QD_INLINE I dot8(I s, W w, const int8_t* a) { return dot(s, w, a); }

}  // namespace qd::QD_ISA
