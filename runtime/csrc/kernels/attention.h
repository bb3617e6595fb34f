// Attention of all rows of a step: writes their keys and values, then attends.
//
// Work is cut into tiles of rows by KV heads. Each task goes through its segments of positions in
// order and merges them into a running softmax. Where tiles are too few for several threads (one
// row, a long context), segments are tasks too, and merged afterwards, in the same order: the same
// bits.
#pragma once

#include <cstdint>

#include "kernels/attention_segment.h"
#include "kernels/kernels.h"
#include "kernels/kv_write.h"
#include "kernels/parallel.h"
#include "kernels/scratch.h"

namespace qd::QD_ISA {

inline float exp_of(float x) {
  float lanes[16];
  store(lanes, exp(set1(x)));
  return lanes[0];
}

// Adds query i of `part` to the same query of `state`; the first one is copied.
inline void merge_partial(const Partial& part, int64_t i, int64_t columns, bool first,
                          const Partial& state) {
  const float* from = part.sums.row(i);
  float* into = state.sums.row(i);
  if (first) {
    state.largest[i] = part.largest[i];
    state.total[i] = part.total[i];
    for (int64_t c = 0; c < columns; c += 16) store(into + c, load(from + c));
    return;
  }
  const float old_largest = state.largest[i], new_largest = part.largest[i];
  const float largest = old_largest > new_largest ? old_largest : new_largest;
  const float keep = exp_of(old_largest - largest), take = exp_of(new_largest - largest);
  state.largest[i] = largest;
  state.total[i] = fma(take, part.total[i], keep * state.total[i]);
  for (int64_t c = 0; c < columns; c += 16)
    store(into + c, fma(set1(take), load(from + c), mul(set1(keep), load(into + c))));
}

// Divides by the sum of weights, to which a sink adds e^sink.
inline void finish_query(const Partial& state, int64_t i, int64_t dim, const float* sink,
                         float* y) {
  float factor = 1, total = state.total[i];
  if (sink) {
    const float largest = state.largest[i] > *sink ? state.largest[i] : *sink;
    factor = exp_of(state.largest[i] - largest);
    total = fma(factor, total, exp_of(*sink - largest));
  }
  const V inverse = set1(factor / total);
  const float* sums = state.sums.row(i);
  for (int64_t c = 0; c < dim; c += 16)
    store_columns(y + c, mul(load(sums + c), inverse), static_cast<int>(smaller(16, dim - c)));
}

// Segments first .. end - 1 hold all that some rows see.
struct Segments {
  int64_t first, end;
  int64_t count() const { return end - first; }
};

// Those of rows first .. end - 1, of which there is at least one.
inline Segments segments_of(const AttentionArgs& args, int64_t first, int64_t end) {
  if (args.seen > 0) return {0, (args.seen - 1) / kSegment + 1};
  int64_t low = args.positions[first], high = low;
  for (int64_t r = first + 1; r < end; ++r) {
    low = smaller(low, args.positions[r]);
    high = larger(high, args.positions[r]);
  }
  const int64_t lowest = args.window > 0 ? larger(0, low + 1 - args.window) : 0;
  return {lowest / kSegment, high / kSegment + 1};
}

template <class Stored>
class StepAttention {
 public:
  explicit StepAttention(const AttentionArgs& args)
      : args_(args),
        writer_(args.kv),
        cache_(args.kv.cache),
        segments_(segments_of(args, 0, args.kv.rows)),
        sizes_(args, segments_.count()),
        tiles_((args.kv.rows + sizes_.rows_per_tile - 1) / sizes_.rows_per_tile) {}

  void run(const Parallel& parallel) {
    const int64_t tasks = tiles_ * args_.kv.cache.kv_heads;
    const int64_t segments = segments_.count();
    const int64_t partials = tasks * segments * Workspace::partial_floats(sizes_);
    const bool split = segments > 1 && tasks < kEnoughTasks && partials <= kMostPartialFloats;
    const int64_t work = Workspace::floats(sizes_), kept = split ? partials : 0;
    const int64_t lanes =
        clamp(kMostWorkFloats / work, 1, smaller(kMostLanes, split ? tasks * segments : tasks));
    memory_ = static_cast<float*>(
        scratch(Scratch::kAttention, static_cast<size_t>(lanes * work + kept) * sizeof(float)));
    partials_ = memory_ + lanes * work;
    worth_threads_ = effort() >= kWorthThreads;
    if (args_.kv.k) write(parallel, lanes);
    if (split) {
      spread(parallel, lanes, tasks * segments, [&](int64_t task, float* memory) {
        attend_segment(task % tasks, segments_.first + task / tasks, memory);
      });
      spread(parallel, lanes, tasks, [&](int64_t task, float*) { merge_segments(task); });
    } else {
      spread(parallel, lanes, tasks, [&](int64_t task, float* memory) { attend(task, memory); });
    }
  }

 private:
  static constexpr int64_t kMostLanes = 32;    // tasks at a time, each with its own memory
  static constexpr int64_t kEnoughTasks = 16;  // from here on segments need not be tasks
  static constexpr int64_t kMostPartialFloats = 8 << 20;
  static constexpr int64_t kMostWorkFloats = 8 << 20;  // of all lanes
  static constexpr int64_t kWorthThreads = 1 << 17;    // multiply-adds

  // About the multiply-adds of the step.
  int64_t effort() const {
    int64_t positions = args_.kv.rows * args_.seen;
    for (int64_t r = 0; args_.seen == 0 && r < args_.kv.rows; ++r)
      positions += args_.positions[r] + 1;
    return positions * args_.heads * sizes_.dim * 2;
  }

  // run(task, memory) for all tasks, in lanes that share no memory.
  template <class Run>
  void spread(const Parallel& parallel, int64_t lanes, int64_t tasks, Run run) {
    run_in_lanes(parallel, worth_threads_ ? lanes : 1, tasks, [&](int64_t task, int64_t lane) {
      run(task, memory_ + lane * Workspace::floats(sizes_));
    });
  }

  void write(const Parallel& parallel, int64_t lanes) {
    const auto run = [&](int64_t task, float* memory) { writer_.run(task, memory); };
    spread(parallel, writer_.tasks() > 2 ? lanes : 1, writer_.tasks(), run);
  }

  TileAttention<Stored> tile(int64_t task, const Workspace& space) const {
    return TileAttention<Stored>(args_, cache_, sizes_, space, task / args_.kv.cache.kv_heads,
                                 task % args_.kv.cache.kv_heads);
  }
  int64_t first_row(int64_t task) const {
    return task / args_.kv.cache.kv_heads * sizes_.rows_per_tile;
  }
  int64_t end_row(int64_t task) const {
    return smaller(args_.kv.rows, first_row(task) + sizes_.rows_per_tile);
  }

  void attend(int64_t task, float* memory) const {
    const Workspace space(sizes_, memory);
    TileAttention<Stored> attention = tile(task, space);
    const Segments seen = segments_of(args_, first_row(task), end_row(task));
    for (int64_t segment = seen.first; segment < seen.end; ++segment) {
      attention.attend(segment, space.partial);
      merge(task, segment, space.partial, space.state);
    }
    finish(task, space.state);
  }

  Partial partial(int64_t task, int64_t segment) const {
    const int64_t index = task * segments_.count() + segment - segments_.first;
    return Workspace::partial_at(sizes_, partials_ + index * Workspace::partial_floats(sizes_));
  }
  void attend_segment(int64_t task, int64_t segment, float* memory) const {
    const Workspace space(sizes_, memory);
    tile(task, space).attend(segment, partial(task, segment));
  }
  void merge_segments(int64_t task) const {
    const Partial state = partial(task, segments_.first);
    for (int64_t segment = segments_.first + 1; segment < segments_.end; ++segment)
      merge(task, segment, partial(task, segment), state);
    finish(task, state);
  }

  // Adds a segment to the state of the queries of a task whose rows see it.
  void merge(int64_t task, int64_t segment, const Partial& part, const Partial& state) const {
    for (int64_t r = first_row(task); r < end_row(task); ++r) {
      const Segments seen = segments_of(args_, r, r + 1);
      if (segment < seen.first || segment >= seen.end) continue;
      for (int64_t h = 0; h < sizes_.group; ++h)
        merge_partial(part, (r - first_row(task)) * sizes_.group + h, sizes_.columns,
                      segment == seen.first, state);
    }
  }
  void finish(int64_t task, const Partial& state) const {
    for (int64_t r = first_row(task); r < end_row(task); ++r)
      for (int64_t h = 0; h < sizes_.group; ++h) {
        const int64_t head = task % args_.kv.cache.kv_heads * sizes_.group + h;
        finish_query(state, (r - first_row(task)) * sizes_.group + h, sizes_.dim,
                     args_.sinks ? args_.sinks + head : nullptr,
                     args_.y + (r * args_.heads + head) * sizes_.dim);
      }
  }

  const AttentionArgs& args_;
  const KvWriter<Stored> writer_;
  const KvView<Stored> cache_;
  const Segments segments_;
  const Sizes sizes_;
  const int64_t tiles_;
  bool worth_threads_ = false;
  float* memory_ = nullptr;
  float* partials_ = nullptr;
};

inline void attention(const AttentionArgs& args, const Parallel& parallel) {
  if (args.kv.rows == 0) return;
  switch (args.kv.cache.type) {
    case KvType::kF32: return StepAttention<float>(args).run(parallel);
    case KvType::kF16: return StepAttention<uint16_t>(args).run(parallel);
    case KvType::kI8: return StepAttention<int8_t>(args).run(parallel);
  }
}

}  // namespace qd::QD_ISA
