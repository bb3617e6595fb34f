// Writing the keys and values of a step into one layer of the cache.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/attention_cache.h"
#include "kernels/kernels.h"
#include "kernels/parallel.h"
#include "kernels/rope.h"
#include "kernels/scratch.h"

namespace qd::QD_ISA {

inline void narrow(float* p, V v) { store(p, v); }
inline void narrow(uint16_t* p, V v) { store_half(p, v); }
inline void narrow(int8_t* p, V v) { store_i8(p, v); }

// What the scale of int8 values follows from.
class Largest {
 public:
  void add(const float* x, int64_t count) {
    for (int64_t d = 0; d < count; d += 16) {
      const V v = load_columns(x + d, static_cast<int>(count - d < 16 ? count - d : 16));
      largest_ = max(largest_, abs(v));
      poison_ = fma(v, zero(), poison_);
    }
  }
  // The largest magnitude is code 127. NaN where a value is not finite, so that whoever sees this
  // row gets NaN, as with the wider types.
  float scale() const {
    const bool finite = sum(poison_) == 0;
    return finite ? max_of(largest_) / 127.0f : std::numeric_limits<float>::quiet_NaN();
  }

 private:
  V largest_ = zero(), poison_ = zero();
};

// Writes x [count] in the type of the cache, value d to target[d * stride]. scale: of int8.
template <class Stored>
inline void write_columns(const float* x, int64_t count, float scale, Stored* target,
                          int64_t stride) {
  const V divisor = set1(scale > 0 ? scale : 1);
  const bool poisoned = scale != scale;
  for (int64_t d = 0; d < count; d += 16) {
    const int n = static_cast<int>(count - d < 16 ? count - d : 16);
    V v = load_columns(x + d, n);
    if constexpr (sizeof(Stored) == 1) {
      // Clamped because the quotient may exceed 127 where the scale is subnormal.
      v = max(set1(-127), min(set1(127), round_even(div(v, divisor))));
      if (poisoned) v = zero();
    }
    Stored narrowed[16];
    narrow(narrowed, v);
    if (stride == 1)
      std::memcpy(target + d, narrowed, static_cast<size_t>(n) * sizeof(Stored));
    else
      for (int i = 0; i < n; ++i) target[(d + i) * stride] = narrowed[i];
  }
}

// Writes a key [dim] to one lane of a group of 16 slots.
template <class Stored>
inline void write_key(const float* x, const KeyGroups<Stored>& group, int64_t lane) {
  if (!group.scales) return write_columns(x, group.dim, 1, group.first + lane, 16);
  const int64_t half = (group.dim + 1) / 2, bands = key_bands(group.dim);
  for (int64_t b = 0; b < bands; ++b) {
    const int64_t begin = b * kBandColumns, second = half + begin;
    const int64_t end = begin + kBandColumns < half ? begin + kBandColumns : half;
    const int64_t last = half + end < group.dim ? half + end : group.dim;
    Largest largest;
    largest.add(x + begin, end - begin);
    largest.add(x + second, last - second);
    const float scale = largest.scale();
    write_columns(x + begin, end - begin, scale, group.first + begin * 16 + lane, 16);
    write_columns(x + second, last - second, scale, group.first + second * 16 + lane, 16);
    group.scales[b * 16 + lane] = scale;
  }
}

template <class Stored>
class KvWriter {
 public:
  explicit KvWriter(const KvWriteArgs& args) : args_(args), cache_(args.cache) {}

  // Sixteen slots side by side share memory, so they are written by one task.
  int64_t tasks() const { return (args_.past + args_.rows + 15) / 16 - first_group(); }

  // rotated: room for one head, of this task alone.
  void run(int64_t task, float* rotated) const {
    const int64_t group = first_group() + task, end = args_.past + args_.rows;
    const int64_t begin = group * 16 > args_.past ? group * 16 : args_.past;
    for (int64_t slot = begin; slot < end && slot < (group + 1) * 16; ++slot) write(slot, rotated);
  }

 private:
  int64_t first_group() const { return args_.past / 16; }

  void write(int64_t slot, float* rotated) const {
    const int64_t row = slot - args_.past, lane = slot % 16, dim = cache_.dim;
    for (int64_t h = 0; h < cache_.heads; ++h) {
      const float* key = args_.k + row * args_.k_stride + h * dim;
      if (args_.rope) {
        const float* cosines = args_.rope + row * 2 * args_.pairs;
        rotate_head(key, dim, cosines, cosines + args_.pairs, args_.pairs, rotated);
        key = rotated;
      }
      write_key(key, cache_.key_groups(slot / 16, h), lane);
      const float* value = args_.v + row * args_.v_stride + h * dim;
      float scale = 1;
      if constexpr (KvView<Stored>::kScaled) {
        Largest largest;
        largest.add(value, dim);
        *cache_.value_scale(slot, h) = scale = largest.scale();
      }
      write_columns(value, dim, scale, cache_.value_rows(slot, h).first, 1);
    }
  }

  const KvWriteArgs& args_;
  const KvView<Stored> cache_;
};

template <class Stored>
inline void write_step(const KvWriteArgs& args, const Parallel& parallel) {
  constexpr int64_t kMostLanes = 32;
  constexpr int64_t kWorthThreads = 1 << 14;  // values
  const KvWriter<Stored> writer(args);
  const int64_t tasks = writer.tasks(), room = (args.cache.head_dim + 15) / 16 * 16;
  const bool worth_threads = args.rows * args.cache.kv_heads * args.cache.head_dim > kWorthThreads;
  const int64_t lanes = !worth_threads ? 1 : tasks < kMostLanes ? tasks : kMostLanes;
  auto* memory = static_cast<float*>(
      scratch(Scratch::kAttention, static_cast<size_t>(lanes * room) * sizeof(float)));
  run_in_lanes(parallel, lanes, tasks,
               [&](int64_t task, int64_t lane) { writer.run(task, memory + lane * room); });
}

inline void kv_write(const KvWriteArgs& args, const Parallel& parallel) {
  if (args.rows == 0) return;
  switch (args.cache.type) {
    case KvType::kF32: return write_step<float>(args, parallel);
    case KvType::kF16: return write_step<uint16_t>(args, parallel);
    case KvType::kI8: return write_step<int8_t>(args, parallel);
  }
}

}  // namespace qd::QD_ISA
