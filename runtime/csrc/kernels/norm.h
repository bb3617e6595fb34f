// RMS and layer norm of rows.
//
// Sums run over four vectors of 16 lanes, column c in lane c % 16 of vector (c / 16) % 4; the
// vectors are added pairwise, then the lanes in the order of sum(). Missing columns count as zeros.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/kernels.h"
#include "kernels/parallel.h"

namespace qd::QD_ISA {

// Sums k columns: add_columns(s, c, n) adds to s a term of each of the n <= 16 columns from c on.
template <class Add>
inline float sum_columns(int64_t k, Add add_columns) {
  V part[4] = {zero(), zero(), zero(), zero()};
  int64_t c = 0;
  for (; c + 64 <= k; c += 64)
    for (int j = 0; j < 4; ++j) part[j] = add_columns(part[j], c + 16 * j, 16);
  for (int j = 0; c < k; c += 16, ++j)
    part[j] = add_columns(part[j], c, static_cast<int>(k - c < 16 ? k - c : 16));
  return sum(add(add(part[0], part[1]), add(part[2], part[3])));
}

inline V load_columns(const float* x, int count) {
  return count == 16 ? load(x) : load_n(x, count);
}

inline void store_columns(float* x, V v, int count) {
  if (count == 16)
    store(x, v);
  else
    store_n(x, v, count);
}

// out = norm(x) + residual (null: nothing is added) over k values. out may be x or residual.
inline void norm_row_onto(const float* x, int64_t k, const NormArgs& norm, const float* residual,
                          float* out) {
  const float columns = static_cast<float>(k);
  float mean = 0, inverse = 1;
  if (norm.kind == NormKind::kLayer) {
    mean = sum_columns(k, [=](V s, int64_t c, int n) { return add(s, load_columns(x + c, n)); });
    mean /= columns;
    float means[16];
    store(means, set1(mean));
    const float squares = sum_columns(k, [&](V s, int64_t c, int n) {
      const V d = sub(load_columns(x + c, n), load_columns(means, n));  // zero past the end
      return fma(d, d, s);
    });
    inverse = 1.0f / std::sqrt(squares / columns + norm.eps);
  } else if (norm.kind == NormKind::kRms) {
    const float squares = sum_columns(k, [=](V s, int64_t c, int n) {
      const V v = load_columns(x + c, n);
      return fma(v, v, s);
    });
    inverse = 1.0f / std::sqrt(squares / columns + norm.eps);
  }
  const V center = set1(mean), factor = set1(inverse);
  for (int64_t c = 0; c < k; c += 16) {
    const int n = static_cast<int>(k - c < 16 ? k - c : 16);
    V v = load_columns(x + c, n);
    if (norm.kind == NormKind::kLayer) v = sub(v, center);
    if (norm.kind != NormKind::kNone) v = mul(v, factor);
    if (norm.weight) v = mul(v, load_columns(norm.weight + c, n));
    if (norm.bias) v = add(v, load_columns(norm.bias + c, n));
    if (residual) v = add(v, load_columns(residual + c, n));
    store_columns(out + c, v, n);
  }
}

// out = norm(x) over k values, as norm_rows computes it: fused and separate norms have the same
// bits.
inline void norm_row(const float* x, int64_t k, const NormArgs& norm, float* out) {
  norm_row_onto(x, k, norm, nullptr, out);
}

inline void norm_rows(const NormRowsArgs& args, const Parallel& parallel) {
  // Parts of about 8192 values, so that handing out a part costs little beside computing it.
  const int64_t columns = args.heads * args.width;
  const int64_t step = columns >= 8192 ? 1 : 8192 / (columns > 0 ? columns : 1);
  auto body = [&](size_t part) {
    const int64_t first = static_cast<int64_t>(part) * step;
    const int64_t last = first + step < args.rows ? first + step : args.rows;
    for (int64_t r = first; r < last; ++r)
      for (int64_t h = 0; h < args.heads; ++h) {
        NormArgs norm = args.norm;
        const int64_t skipped = h * args.width;
        if (args.per_head && norm.weight) norm.weight += skipped;
        if (args.per_head && norm.bias) norm.bias += skipped;
        const float* residual = args.residual ? args.residual + r * columns + skipped : nullptr;
        norm_row_onto(args.x + r * args.stride + args.offset + skipped, args.width, norm, residual,
                      args.y + r * columns + skipped);
      }
  };
  run_parallel(parallel, static_cast<size_t>((args.rows + step - 1) / step), body);
}

}  // namespace qd::QD_ISA
