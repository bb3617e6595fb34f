// Which table of kernels this machine runs.
#include <cstdlib>
#include <cstring>

#include "kernels/kernels.h"

#if defined(_M_X64) || defined(__x86_64__)
#define QD_X86 1
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace qd {

const Kernels* kernels_avx512vnni();
const Kernels* kernels_avxvnni();
const Kernels* kernels_avx2();
const Kernels* kernels_i8mm();
const Kernels* kernels_dotprod();
const Kernels* kernels_portable();

namespace {

#if defined(QD_X86)

struct Registers {
  uint32_t a, b, c, d;
};

Registers cpuid(uint32_t leaf, uint32_t part) {
  Registers r = {};
#if defined(_MSC_VER)
  int values[4];
  __cpuidex(values, static_cast<int>(leaf), static_cast<int>(part));
  r = {static_cast<uint32_t>(values[0]), static_cast<uint32_t>(values[1]),
       static_cast<uint32_t>(values[2]), static_cast<uint32_t>(values[3])};
#else
  __cpuid_count(leaf, part, r.a, r.b, r.c, r.d);
#endif
  return r;
}

// The state that the operating system saves: bits 1-2 for 256-bit registers, 5-7 for 512-bit ones.
uint64_t saved_state() {
#if defined(_MSC_VER)
  return _xgetbv(0);
#else
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
#endif
}

bool bits(uint32_t value, uint32_t wanted) { return (value & wanted) == wanted; }

bool has_avx2() {
  if (cpuid(0, 0).a < 7) return false;
  constexpr uint32_t kFma = 1u << 12, kOsSaves = 1u << 27, kAvx = 1u << 28, kHalf = 1u << 29;
  if (!bits(cpuid(1, 0).c, kFma | kOsSaves | kAvx | kHalf)) return false;
  return (saved_state() & 6) == 6 && bits(cpuid(7, 0).b, 1u << 5);
}

bool has_avxvnni() { return has_avx2() && cpuid(7, 0).a >= 1 && bits(cpuid(7, 1).a, 1u << 4); }

bool has_avx512vnni() {
  constexpr uint32_t kF = 1u << 16, kDq = 1u << 17, kBw = 1u << 30, kVl = 1u << 31;
  return has_avx2() && (saved_state() & 0xe6) == 0xe6 &&
         bits(cpuid(7, 0).b, kF | kDq | kBw | kVl) && bits(cpuid(7, 0).c, 1u << 11);
}

#elif defined(__aarch64__) && defined(__linux__)

// Half-precision vectors are asked for as well because the compiler may use them.
bool has_dotprod() {
  constexpr unsigned long kHalf = 1ul << 10, kDot = 1ul << 20;
  return (getauxval(AT_HWCAP) & (kHalf | kDot)) == (kHalf | kDot);
}
bool has_i8mm() { return has_dotprod() && (getauxval(AT_HWCAP2) & (1ul << 13)) != 0; }

#elif defined(__aarch64__) && defined(__APPLE__)

bool feature(const char* name) {
  int value = 0;
  size_t size = sizeof(value);
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value == 1;
}
bool has_dotprod() { return feature("hw.optional.arm.FEAT_DotProd"); }
bool has_i8mm() { return has_dotprod() && feature("hw.optional.arm.FEAT_I8MM"); }

#elif defined(__aarch64__)

bool has_dotprod() { return false; }
bool has_i8mm() { return false; }

#endif

struct Isa {
  const char* name;
  const Kernels* (*table)();
  bool (*runs)();
};

// Best first.
const Isa kIsas[] = {
#if defined(QD_HAVE_AVX512VNNI)
    {"avx512vnni", kernels_avx512vnni, has_avx512vnni},
#endif
#if defined(QD_HAVE_AVXVNNI)
    {"avxvnni", kernels_avxvnni, has_avxvnni},
#endif
#if defined(QD_HAVE_AVX2)
    {"avx2", kernels_avx2, has_avx2},
#endif
#if defined(QD_HAVE_I8MM)
    {"i8mm", kernels_i8mm, has_i8mm},
#endif
#if defined(QD_HAVE_DOTPROD)
    {"dotprod", kernels_dotprod, has_dotprod},
#endif
    {"portable", kernels_portable, [] { return true; }},
};

}  // namespace

const Kernels* kernels_named(const char* name) {
  for (const Isa& isa : kIsas)
    if (!std::strcmp(isa.name, name)) return isa.runs() ? isa.table() : nullptr;
  return nullptr;
}

const char* isa_name(int index) {
  const int count = static_cast<int>(sizeof(kIsas) / sizeof(kIsas[0]));
  return index >= 0 && index < count ? kIsas[index].name : nullptr;
}

const Kernels* kernels() {
  static const Kernels* const chosen = [] {
    const char* name = std::getenv("QUICKDRAFT_ISA");
    if (name && *name) return kernels_named(name);
    const Kernels* best = nullptr;
    for (const Isa& isa : kIsas)
      if (!best && isa.runs()) best = isa.table();
    return best;
  }();
  return chosen;
}

}  // namespace qd
