// The output head: logits of chosen rows and the largest of each.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/kernels.h"
#include "kernels/linear.h"
#include "kernels/top.h"

namespace qd::QD_ISA {

// What is known of one chunk of one row: its largest logits, and the sum of exp(logit - largest).
struct TopPart {
  int64_t found;
  float largest;
  float sum;
};

// Caps a chunk, finds the maximum of each block and the sum of the exponentials. Sums run over four
// vectors, as in norm.h. NaN becomes the maximum of its block.
inline TopPart scan_chunk(float* logits, int64_t count, float cap, float* maxima) {
  const V scale = set1(cap), inverse = set1(cap > 0 ? 1 / cap : 0);
  float largest = -INFINITY;
  for (int64_t start = 0; start < count; start += kTopBlock) {
    const int64_t end = start + kTopBlock < count ? start + kTopBlock : count;
    V highest = set1(-INFINITY), broken = zero();
    for (int64_t c = start; c < end; c += 16) {
      const int n = static_cast<int>(end - c < 16 ? end - c : 16);
      V v = load_columns(logits + c, n);
      if (cap > 0) {
        v = mul(scale, tanh(mul(v, inverse)));
        store_columns(logits + c, v, n);
      }
      if (n < 16) {  // lanes past the end repeat the first
        float lanes[16];
        store(lanes, set1(logits[c]));
        store_n(lanes, v, n);
        v = load(lanes);
      }
      broken = add(broken, mul(v, zero()));  // NaN where a lane is infinite or NaN
      highest = max(v, highest);
    }
    float maximum = max_of(highest);
    if (sum(broken) != 0.0f)
      for (int64_t c = start; c < end; ++c)
        if (std::isnan(logits[c])) maximum = logits[c];
    maxima[start / kTopBlock] = maximum;
    if (!(maximum <= largest)) largest = maximum;
  }
  const V top = set1(largest);
  const float total = sum_columns(count, [=](V s, int64_t c, int n) {
    const V grown = exp(sub(load_columns(logits + c, n), top));
    if (n == 16) return add(s, grown);
    float lanes[16] = {};
    store_n(lanes, grown, n);
    return add(s, load(lanes));
  });
  return {0, largest, total};
}

// Memory of one pass over the head: logits, then per row and chunk its part, keys and work space.
struct HeadPass {
  int64_t chunks, top;
  TopPart* parts;  // [rows][chunks]
  TopKey* keys;    // [rows][chunks][top]
  TopKey* work;    // [rows][chunks][kTopChunk]
};

inline void merge_row(const HeadArgs& args, const HeadPass& pass, int64_t in_pass, int64_t row) {
  const TopPart* parts = pass.parts + in_pass * pass.chunks;
  TopKey* all = pass.work + in_pass * pass.chunks * kTopChunk;
  int64_t count = 0;
  float largest = parts[0].largest;
  for (int64_t c = 0; c < pass.chunks; ++c) {
    const TopKey* keys = pass.keys + (in_pass * pass.chunks + c) * pass.top;
    for (int64_t i = 0; i < parts[c].found; ++i) all[count++] = keys[i];
    if (!(parts[c].largest <= largest)) largest = parts[c].largest;
  }
  merge_top(all, count, args.top);
  for (int64_t i = 0; i < args.top; ++i) {
    args.values[row * args.top + i] = top_value(all[i]);
    args.ids[row * args.top + i] = top_id(all[i]);
  }
  double total = 0;
  for (int64_t c = 0; c < pass.chunks; ++c)
    total += parts[c].sum * std::exp(static_cast<double>(parts[c].largest) - largest);
  args.log_sum[row] = static_cast<float>(largest + std::log(total));
}

// Rows first .. first + count - 1 of the wanted ones.
inline void head_pass(const HeadArgs& args, int64_t first, int64_t count,
                      const Parallel& parallel) {
  LinearArgs linear = args.linear;
  const int64_t n = linear.n;
  HeadPass pass;
  pass.chunks = (n + kTopChunk - 1) / kTopChunk;
  pass.top = args.top < kTopChunk ? args.top : kTopChunk;
  const int64_t cells = count * pass.chunks;
  const size_t logit_bytes = args.logits ? 0 : static_cast<size_t>((count * n * 4 + 63) / 64 * 64);
  const size_t cell_bytes = sizeof(TopPart) + 8 * static_cast<size_t>(pass.top + kTopChunk);
  uint8_t* memory = static_cast<uint8_t*>(
      scratch(Scratch::kTop, logit_bytes + static_cast<size_t>(cells) * cell_bytes + 64));
  float* logits = args.logits ? args.logits + first * n : reinterpret_cast<float*>(memory);
  pass.keys = reinterpret_cast<TopKey*>(memory + logit_bytes);
  pass.work = pass.keys + cells * pass.top;
  pass.parts = reinterpret_cast<TopPart*>(pass.work + cells * kTopChunk);
  linear.rows = count;
  linear.residual = nullptr;
  linear.activation = Activation::kNone;
  linear.gated = false;
  linear.y = logits;
  const Prepared x = prepare(linear, args.rows + first, count, parallel);
  over_pairs(linear, parallel,
             [&](int64_t from, int64_t to) { linear_pairs(linear, x, from, to); });
  auto search = [&](size_t cell) {
    const int64_t row = static_cast<int64_t>(cell) / pass.chunks;
    const int64_t start = static_cast<int64_t>(cell) % pass.chunks * kTopChunk;
    const int64_t length = n - start < kTopChunk ? n - start : kTopChunk;
    float maxima[kTopChunk / kTopBlock];
    float* values = logits + row * n + start;
    TopPart part = scan_chunk(values, length, args.softcap, maxima);
    const int64_t c = static_cast<int64_t>(cell);
    part.found = select_top(values, maxima, length, start, pass.top, pass.work + c * kTopChunk,
                            pass.keys + c * pass.top);
    pass.parts[c] = part;
  };
  run_parallel(parallel, static_cast<size_t>(cells), search);
  for (int64_t row = 0; row < count; ++row) merge_row(args, pass, row, first + row);
}

inline void head(const HeadArgs& args, const Parallel& parallel) {
  constexpr int64_t kRowsAtOnce = 32;  // bounds the memory for logits that nobody asked for
  for (int64_t row = 0; row < args.m; row += kRowsAtOnce) {
    const int64_t left = args.m - row;
    head_pass(args, row, left < kRowsAtOnce ? left : kRowsAtOnce, parallel);
  }
}

}  // namespace qd::QD_ISA
