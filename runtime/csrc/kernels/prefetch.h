// Asking for memory before it is needed.
#pragma once

#include <cstddef>

#if defined(__GNUC__) || defined(__clang__)
#define QD_PREFETCH(p) __builtin_prefetch(p)
#else
#include <xmmintrin.h>
#define QD_PREFETCH(p) _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0)
#endif

namespace qd::QD_ISA {

// Asks for `bytes` from `p` on.
inline void prefetch_bytes(const void* p, size_t bytes) {
  const char* const first = static_cast<const char*>(p);
  for (size_t at = 0; at < bytes; at += 64) QD_PREFETCH(first + at);
}

}  // namespace qd::QD_ISA
