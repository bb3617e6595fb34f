// Rotary positions: the table of a step and the rotation of one head.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/kernels.h"
#include "kernels/norm.h"
#include "kernels/parallel.h"

namespace qd::QD_ISA {

// out = x, its values i and pairs + i turned by the angle of pair i; cosines and sines: [pairs].
inline void rotate_head(const float* x, int64_t dim, const float* cosines, const float* sines,
                        int64_t pairs, float* out) {
  for (int64_t i = 0; i < pairs; i += 16) {
    const int n = static_cast<int>(pairs - i < 16 ? pairs - i : 16);
    const V a = load_columns(x + i, n), b = load_columns(x + pairs + i, n);
    const V cosine = load_columns(cosines + i, n), sine = load_columns(sines + i, n);
    store_columns(out + i, sub(mul(a, cosine), mul(b, sine)), n);
    store_columns(out + pairs + i, add(mul(b, cosine), mul(a, sine)), n);
  }
  for (int64_t i = 2 * pairs; i < dim; ++i) out[i] = x[i];
}

// Angles are products in float32, as models were trained with; their cosines and sines are computed
// in double and rounded, so that they agree between C libraries.
inline void rope_table(const RopeTableArgs& args, const Parallel& parallel) {
  constexpr int64_t kRows = 16;
  auto body = [&](size_t part) {
    const int64_t first = static_cast<int64_t>(part) * kRows;
    const int64_t last = first + kRows < args.rows ? first + kRows : args.rows;
    for (int64_t r = first; r < last; ++r) {
      const float position = static_cast<float>(args.positions[r]);
      float* cosines = args.table + r * 2 * args.pairs;
      float* sines = cosines + args.pairs;
      for (int64_t i = 0; i < args.pairs; ++i) {
        const float angle = position * args.frequencies[i];
        cosines[i] = static_cast<float>(std::cos(static_cast<double>(angle))) * args.factor;
        sines[i] = static_cast<float>(std::sin(static_cast<double>(angle))) * args.factor;
      }
    }
  };
  run_parallel(parallel, static_cast<size_t>((args.rows + kRows - 1) / kRows), body);
}

}  // namespace qd::QD_ISA
