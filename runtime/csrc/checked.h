// Arithmetic on sizes that come from outside: nothing wraps around.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>

namespace qd {

// The product of the factors, or nothing where one is negative or the product exceeds int64.
template <typename... Factors>
std::optional<int64_t> product(Factors... factors) {
  int64_t result = 1;
  bool zero = false, bad = false;
  const int64_t list[] = {static_cast<int64_t>(factors)...};
  for (const int64_t factor : list) {
    bad = bad || factor < 0;
    zero = zero || factor == 0;
  }
  if (bad) return std::nullopt;
  if (zero) return 0;
  for (const int64_t factor : list) {
    if (result > std::numeric_limits<int64_t>::max() / factor) return std::nullopt;
    result *= factor;
  }
  return result;
}

inline std::optional<int64_t> product(std::optional<int64_t> a, std::optional<int64_t> b) {
  return a && b ? product(*a, *b) : std::nullopt;
}

// a / b rounded up, for a >= 0 and b > 0.
constexpr int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

}  // namespace qd
