// Functions that must disappear into their callers: their values live in registers only there.
#pragma once

#if defined(_MSC_VER)
#define QD_INLINE __forceinline
#else
#define QD_INLINE __attribute__((always_inline)) inline
#endif
