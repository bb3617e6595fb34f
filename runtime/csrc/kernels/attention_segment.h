// Attention of a tile of rows over one segment of positions, for one KV head and its query heads.
//
// Positions are numbered from 0 in every row, wherever their slots lie. A segment is kSegment of
// them from a multiple of kSegment on. Within it a query has one maximum, sums weights in 16 lanes
// by position, and adds values in order of positions. A row's positions are contiguous; nothing
// else is ever added, so whatever lies in other slots is without effect.
#pragma once

#include <cstdint>
#include <limits>

#include "kernels/attention_cache.h"
#include "kernels/math.h"
#include "kernels/prefetch.h"
#include "kernels/rope.h"

namespace qd::QD_ISA {

constexpr int64_t kSegment = 256;
constexpr int64_t kPositions = 64;    // positions widened to float32 at a time
constexpr int64_t kMostQueries = 48;  // of a tile, unless one row has more
// Up to so many queries read the cache in its own type. With AVX-512 widening a value is one
// instruction beside six fused multiply-adds, cheaper than to store and load it again.
#if defined(__AVX512F__)
constexpr int64_t kWidenFrom = 48;
#else
constexpr int64_t kWidenFrom = 12;
#endif
constexpr int64_t kTasksToShare = 4;  // tiles are smaller where there would be fewer

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t clamp(int64_t x, int64_t low, int64_t high) { return larger(low, smaller(x, high)); }
inline int64_t round_up16(int64_t x) { return (x + 15) / 16 * 16; }

// Softmax of queries over some positions before division: largest score, sum of weights (relative
// to it), weighted sum of values.
struct Partial {
  float* largest;  // [queries]
  float* total;    // [queries]
  FloatRows sums;  // [queries][columns]
};

// The positions a row sees in a segment, relative to its start: those from low to prefix lie in the
// slots of their number, those from prefix to high in slots of the tree.
struct Span {
  int64_t low, prefix, high;
  bool empty() const { return low >= high; }
};

struct Sizes {
  int64_t dim;      // of a head
  int64_t columns;  // dim, rounded up to 16
  int64_t group;    // query heads per KV head
  int64_t rows_per_tile;
  int64_t queries;  // of a tile: rows_per_tile * group

  Sizes(const AttentionArgs& args, int64_t segments)
      : dim(args.kv.cache.head_dim),
        columns(round_up16(dim)),
        group(args.heads / args.kv.cache.kv_heads) {
    // As many as there may be, for each widened value serves them all, unless that leaves too few
    // tasks to share out; but no fewer than fill a register tile.
    const int64_t whole = larger(1, segments - 1);
    const int64_t parts = (kTasksToShare - 1) / (args.kv.cache.kv_heads * whole) + 1;
    const int64_t fewest = (kTileQueries - 1) / group + 1;
    const int64_t shared = larger(fewest, (args.kv.rows - 1) / parts + 1);
    rows_per_tile = group < kMostQueries ? smaller(kMostQueries / group, shared) : 1;
    queries = rows_per_tile * group;
  }
};

// The memory of a task.
struct Workspace {
  FloatRows queries;    // [queries][columns], rotated
  FloatRows scores;     // [queries][kSegment]
  FloatRows step;       // [kTileQueries][kPositions], scores against slots of this step
  float* keys;          // [kPositions / 16][dim][16]
  float* values;        // [kPositions][columns]
  float* value_scales;  // [kSegment]
  Partial partial;      // of a segment
  Partial state;        // of the segments so far

  // All parts are multiples of 16 floats, a cache line.
  static int64_t partial_floats(const Sizes& sizes) {
    return round_up16(2 * sizes.queries) + sizes.queries * sizes.columns;
  }
  static int64_t floats(const Sizes& sizes) {
    return sizes.queries * (sizes.columns + kSegment) + kTileQueries * kPositions +
           2 * kPositions * sizes.columns + kSegment + 2 * partial_floats(sizes);
  }
  static Partial partial_at(const Sizes& sizes, float* memory) {
    float* sums = memory + round_up16(2 * sizes.queries);
    return {memory, memory + sizes.queries, {sums, sizes.columns}};
  }
  Workspace(const Sizes& sizes, float* memory) {
    const auto take = [&](int64_t count) {
      float* taken = memory;
      memory += count;
      return taken;
    };
    queries = {take(sizes.queries * sizes.columns), sizes.columns};
    scores = {take(sizes.queries * kSegment), kSegment};
    step = {take(kTileQueries * kPositions), kPositions};
    keys = take(kPositions * sizes.columns);
    values = take(kPositions * sizes.columns);
    value_scales = take(kSegment);
    partial = partial_at(sizes, take(partial_floats(sizes)));
    state = partial_at(sizes, take(partial_floats(sizes)));
  }
};

// v where first + lane lies in [low, high), -infinity elsewhere, whatever is there.
inline V keep_positions(V v, int64_t first, int64_t low, int64_t high) {
  static constexpr float kLanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const V lane = load(kLanes), nothing = set1(-std::numeric_limits<float>::infinity());
  const V from_low = select_gt(lane, set1(static_cast<float>(low - first) - 0.5f), v, nothing);
  return select_gt(set1(static_cast<float>(high - first) - 0.5f), lane, from_low, nothing);
}

// What relative positions add to the scores of one query.
struct RelativeRow {
  const float* row;  // [2 * reach + 1], or null
  int64_t reach;
  int64_t start;  // of the segment, as seen from the query

  // Of positions p .. p + 15 of the segment.
  V at(int64_t p) const {
    const int64_t first = start + p, last = first + 15;
    if (last <= -reach) return set1(row[0]);
    if (first >= reach) return set1(row[2 * reach]);
    if (first >= -reach && last <= reach) return load(row + reach + first);
    float lanes[16];
    for (int64_t i = 0; i < 16; ++i) lanes[i] = row[reach + clamp(first + i, -reach, reach)];
    return load(lanes);
  }
};

// Turns the products s[low .. high) into weights e^(score - largest); returns largest and their
// sum.
inline void soft_weights(float* s, const Span& span, float scale, const RelativeRow& relative,
                         float softcap, float* largest, float* total) {
  const int64_t first = span.low / 16 * 16;
  V most = set1(-std::numeric_limits<float>::infinity());
  for (int64_t p = first; p < span.high; p += 16) {
    V v = mul(load(s + p), set1(scale));
    if (softcap > 0) v = mul(set1(softcap), tanh(div(v, set1(softcap))));
    if (relative.row) v = add(v, relative.at(p));
    if (p < span.low || p + 16 > span.high) v = keep_positions(v, p, span.low, span.high);
    store(s + p, v);
    most = max(most, v);
  }
  const V reference = set1(max_of(most));
  V sum_of_weights = zero();
  for (int64_t p = first; p < span.high; p += 16) {
    const V weight = exp(sub(load(s + p), reference));
    store(s + p, weight);
    sum_of_weights = add(sum_of_weights, weight);
  }
  *largest = max_of(most);
  *total = sum(sum_of_weights);
}

// One tile of rows and one KV head, ready to attend to segments one by one.
template <class Stored>
class TileAttention {
 public:
  TileAttention(const AttentionArgs& args, const KvView<Stored>& cache, const Sizes& sizes,
                const Workspace& space, int64_t tile, int64_t head)
      : args_(args), cache_(cache), sizes_(sizes), space_(space), head_(head) {
    first_row_ = tile * sizes.rows_per_tile;
    rows_ = smaller(sizes.rows_per_tile, args.kv.rows - first_row_);
    queries_ = rows_ * sizes.group;
    widen_ = sizeof(Stored) < sizeof(float) && queries_ > kWidenFrom;
    for (int64_t i = 0; i < queries_; ++i) load_query(i);
  }

  // Fills out for every query whose row sees a position of the segment.
  void attend(int64_t segment, const Partial& out) {
    start_ = segment * kSegment;
    bool has_step = false;
    for (int64_t r = 0; r < rows_; ++r) {
      spans_[r] = span_of(first_row_ + r);
      has_step |= spans_[r].prefix < spans_[r].high;
    }
    score_prefix();
    if (has_step) score_step();
    for (int64_t i = 0; i < queries_; ++i) {
      const Span& seen = spans_[row_of(i)];
      if (seen.empty()) continue;
      soft_weights(space_.scores.row(i), seen, args_.scale, relative_of(i), args_.softcap,
                   out.largest + i, out.total + i);
      for (int64_t c = 0; c < sizes_.columns; c += 16) store(out.sums.row(i) + c, zero());
    }
    if constexpr (KvView<Stored>::kScaled) scale_weights();
    sum_prefix(out);
    if (has_step) sum_step(out);
  }

 private:
  void load_query(int64_t i) {
    const int64_t row = first_row_ + row_of(i);
    const int64_t head = head_ * sizes_.group + i % sizes_.group;
    const float* q = args_.q + row * args_.q_stride + head * sizes_.dim;
    const float* cosines = args_.kv.rope ? args_.kv.rope + row * 2 * args_.kv.pairs : nullptr;
    const int64_t pairs = args_.kv.rope ? args_.kv.pairs : 0;
    rotate_head(q, sizes_.dim, cosines, cosines + pairs, pairs, space_.queries.row(i));
  }

  // The row of a query, from the first of the tile on; 32 bits because it is asked for often.
  int64_t row_of(int64_t query) const {
    return static_cast<uint32_t>(query) / static_cast<uint32_t>(sizes_.group);
  }
  RelativeRow relative_of(int64_t query) const {
    if (!args_.relative) return {nullptr, 0, 0};
    const int64_t row = first_row_ + row_of(query);
    const int64_t head = head_ * sizes_.group + query % sizes_.group;
    const int64_t position = args_.seen > 0 ? row : args_.positions[row];
    return {args_.relative + head * (2 * args_.reach + 1), args_.reach, start_ - position};
  }
  Span span_of(int64_t row) const {
    const int64_t end = args_.seen > 0 ? args_.seen : args_.positions[row] + 1;
    const int64_t begin = args_.window > 0 ? larger(0, end - args_.window) : 0;
    const int64_t in_place = args_.ancestors ? smaller(end, args_.committed()) : end;
    Span seen;
    seen.low = clamp(begin - start_, 0, kSegment);
    seen.high = clamp(end - start_, 0, kSegment);
    seen.prefix = clamp(in_place - start_, seen.low, larger(seen.low, seen.high));
    return seen;
  }
  // Slot of a position past the prefix of row first_row_ + r, relative to the segment.
  int64_t step_slot(int64_t r, int64_t position) const {
    const int64_t depth = start_ + position - args_.committed();
    return args_.committed() + args_.ancestors[(first_row_ + r) * args_.depths + depth];
  }
  // The smallest low and the largest prefix among queries first .. first + count - 1.
  Span prefix_of(int64_t first, int64_t count) const {
    Span all = {kSegment, 0, 0};
    for (int64_t r = row_of(first); r <= row_of(first + count - 1); ++r) {
      const Span& seen = spans_[r];
      if (seen.low >= seen.prefix) continue;
      all.low = smaller(all.low, seen.low);
      all.prefix = larger(all.prefix, seen.prefix);
    }
    return all;
  }

  // A head's keys and values lie in pieces too short for the hardware to foresee the next one, so
  // those of these positions are asked for while earlier ones are multiplied. Many queries multiply
  // longer than they wait: they do not ask.
  void ask_keys(int64_t begin, int64_t end) const {
    for (int64_t p = begin; p < end; p += 16) {
      const KeyGroups<Stored> keys = cache_.key_groups((start_ + p) / 16, head_);
      prefetch_bytes(keys.first, static_cast<size_t>(16 * sizes_.dim) * sizeof(Stored));
      if constexpr (KvView<Stored>::kScaled)
        prefetch_bytes(keys.scales, static_cast<size_t>(16 * cache_.bands) * sizeof(float));
    }
  }
  void ask_values(int64_t begin, int64_t end) const {
    for (int64_t p = begin; p < end; ++p)
      prefetch_bytes(cache_.value_rows(start_ + p, head_).first,
                     static_cast<size_t>(sizes_.dim) * sizeof(Stored));
  }

  void score_prefix() {
    const Span all = prefix_of(0, queries_);
    for (int64_t p = all.low / 16 * 16; p < all.prefix; p = (p / kPositions + 1) * kPositions) {
      const int64_t end = smaller((p / kPositions + 1) * kPositions, round_up16(all.prefix));
      const KeyGroups<Stored> keys = cache_.key_groups((start_ + p) / 16, head_);
      if (widen_) {
        score_block(widen_keys(keys, (end - p) / 16, space_.keys), p, end);
        continue;
      }
      ask_keys(end, smaller(end + kPositions, round_up16(all.prefix)));
      ask_values(p, smaller(end, all.prefix));
      score_block(keys, p, end);
    }
  }
  template <class Kind>
  void score_block(const KeyGroups<Kind>& keys, int64_t begin, int64_t end) {
    for (int64_t i = 0; i < queries_; i += kTileQueries) {
      const int64_t count = smaller(kTileQueries, queries_ - i);
      const Span seen = prefix_of(i, count);
      const int64_t from = larger(begin, seen.low / 16 * 16);
      const int64_t to = smaller(end, round_up16(seen.prefix));
      if (from < to)
        score_groups(count, (to - from) / 16, queries_at(i), keys.from((from - begin) / 16),
                     {space_.scores.row(i) + from, kSegment});
    }
  }

  // Scores against all slots of the tree, of which each row picks its own path.
  void score_step() {
    const int64_t last = args_.kv.past + args_.kv.rows;
    for (int64_t slot = args_.committed() / 16 * 16; slot < last; slot += kPositions) {
      const int64_t groups = smaller(kPositions, round_up16(last - slot)) / 16;
      const KeyGroups<Stored> keys = cache_.key_groups(slot / 16, head_);
      if (widen_)
        score_slots(widen_keys(keys, groups, space_.keys), slot, groups);
      else
        score_slots(keys, slot, groups);
    }
  }
  template <class Kind>
  void score_slots(const KeyGroups<Kind>& keys, int64_t slot, int64_t groups) {
    for (int64_t i = 0; i < queries_; i += kTileQueries) {
      const int64_t count = smaller(kTileQueries, queries_ - i);
      score_groups(count, groups, queries_at(i), keys, space_.step);
      for (int64_t j = 0; j < count; ++j) {
        const int64_t row = row_of(i + j);
        const Span& seen = spans_[row];
        for (int64_t p = seen.prefix; p < seen.high; ++p) {
          const int64_t at = step_slot(row, p) - slot;
          if (at >= 0 && at < groups * 16) space_.scores.row(i + j)[p] = space_.step.row(j)[at];
        }
      }
    }
  }

  // int8: the weight of a position takes in the scale of its values.
  void scale_weights() {
    const Span all = prefix_of(0, queries_);
    float* scales = space_.value_scales;
    for (int64_t p = all.low; p < all.prefix; ++p)
      scales[p] = *cache_.value_scale(start_ + p, head_);
    for (int64_t i = 0; i < queries_; ++i) {
      const Span& seen = spans_[row_of(i)];
      float* weights = space_.scores.row(i);
      for (int64_t p = seen.low; p < seen.prefix; ++p) weights[p] *= scales[p];
      for (int64_t p = seen.prefix; p < seen.high; ++p)
        weights[p] *= *cache_.value_scale(step_slot(row_of(i), p), head_);
    }
  }

  void sum_prefix(const Partial& out) {
    const Span all = prefix_of(0, queries_);
    for (int64_t p = all.low; p < all.prefix; p = (p / kPositions + 1) * kPositions) {
      const int64_t end = smaller((p / kPositions + 1) * kPositions, all.prefix);
      const ValueRows<Stored> values = cache_.value_rows(start_ + p, head_);
      if (widen_ || sizes_.dim != sizes_.columns)
        sum_block(widen_values(values, end - p, sizes_.dim, sizes_.columns, space_.values), p, end,
                  out);
      else
        sum_block(values, p, end, out);
    }
  }
  template <class Kind>
  void sum_block(const ValueRows<Kind>& values, int64_t begin, int64_t end, const Partial& out) {
    const auto add = [&](int64_t query, int64_t count, int64_t from, int64_t to) {
      if (from >= to) return;
      sum_values(count, to - from, {space_.scores.row(query) + from, kSegment},
                 ValueRows<Kind>{values.first + (from - begin) * values.stride, values.stride},
                 sizes_.columns, {out.sums.row(query), out.sums.stride});
    };
    for (int64_t i = 0; i < queries_; i += kTileQueries) {
      const int64_t count = smaller(kTileQueries, queries_ - i);
      int64_t from[kTileQueries], to[kTileQueries], low = begin, high = end;
      for (int64_t j = 0; j < count; ++j) {
        const Span& seen = spans_[row_of(i + j)];
        from[j] = clamp(seen.low, begin, end);
        to[j] = clamp(seen.prefix, begin, end);
        low = larger(low, from[j]);
        high = smaller(high, to[j]);
      }
      // The positions that all see are summed together, the rest one query at a time.
      const bool common = low < high;
      for (int64_t j = 0; j < count; ++j) add(i + j, 1, from[j], common ? low : to[j]);
      if (!common) continue;
      add(i, count, low, high);
      for (int64_t j = 0; j < count; ++j) add(i + j, 1, high, to[j]);
    }
  }

  void sum_step(const Partial& out) {
    for (int64_t r = 0; r < rows_; ++r) {
      const Span& seen = spans_[r];
      for (int64_t p = seen.prefix; p < seen.high; ++p) {
        const ValueRows<Stored> value = cache_.value_rows(step_slot(r, p), head_);
        const ValueRows<float> wide =
            widen_values(value, 1, sizes_.dim, sizes_.columns, space_.values);
        for (int64_t i = r * sizes_.group; i < (r + 1) * sizes_.group; i += kTileQueries)
          sum_values(smaller(kTileQueries, (r + 1) * sizes_.group - i), 1,
                     {space_.scores.row(i) + p, kSegment}, wide, sizes_.columns,
                     {out.sums.row(i), out.sums.stride});
      }
    }
  }

  FloatRows queries_at(int64_t i) const { return {space_.queries.row(i), space_.queries.stride}; }

  const AttentionArgs& args_;
  const KvView<Stored>& cache_;
  const Sizes& sizes_;
  const Workspace& space_;
  int64_t head_, first_row_, rows_, queries_, start_ = 0;
  bool widen_;
  Span spans_[kMostQueries];  // of each row, in the segment at hand
};

}  // namespace qd::QD_ISA
