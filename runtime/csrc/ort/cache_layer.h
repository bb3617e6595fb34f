// What the ops share that read or write a layer of a cache: where it lies, and for those that write
// keys and values of a step, the inputs k, v, past, cache and rope.
#pragma once

#include <cstring>

#include "checked.h"
#include "ort/node.h"

namespace qd::ort {

constexpr int64_t kMaxHeads = 1 << 20;
constexpr int64_t kMaxHeadDim = 1 << 20;
constexpr int64_t kMaxColumn = 0x7fffffff;

// One layer of the buffer of all layers, by the attributes kv_heads, head_dim, kv_heads_before and
// kv_heads_total.
class LayerPlace {
 public:
  explicit LayerPlace(const Creation& creation)
      : kv_heads(creation.integer("kv_heads", 1, kMaxHeads)),
        head_dim(creation.integer("head_dim", 1, kMaxHeadDim)),
        before_(creation.integer("kv_heads_before", 0, kMaxColumn)),
        total_(creation.integer("kv_heads_total", 1, kMaxColumn)) {
    creation.require(before_ + kv_heads <= total_,
                     "attributes kv_heads_before and kv_heads exceed kv_heads_total");
  }

  // The form of the layer, from what input `index` says: committed rows, type and capacity.
  KvLayer form(const Run& run, size_t index, const int64_t* past, int64_t rows) const {
    const int64_t committed = past[0], type = past[1], capacity = past[2];
    if (type < 0 || type > static_cast<int64_t>(KvType::kI8)) {
      run.refuse_input(index, "[1] is " + std::to_string(type) +
                                  ", expected 0 (float32), 1 (float16) or 2 (int8)");
    }
    if (capacity < kBlock || capacity % kBlock != 0) {
      run.refuse_input(index, "[2] is " + std::to_string(capacity) +
                                  ", expected slots in a positive multiple of 16");
    }
    if (committed < 0 || committed > capacity || rows > capacity - committed) {
      run.refuse_input(index, "[0] is " + std::to_string(committed) + ": with " +
                                  std::to_string(rows) + " new rows that does not fit a cache of " +
                                  std::to_string(capacity) + " slots");
    }
    return {static_cast<KvType>(type), capacity, kv_heads, head_dim, nullptr};
  }

  // The bytes of all layers, of which input `index` told the capacity.
  int64_t bytes(const Run& run, size_t index, const KvLayer& layer) const {
    const auto count = product(layer.capacity, total_, kv_head_bytes(layer.type, head_dim));
    if (!count) run.refuse_input(index, "[2] asks for more bytes than there are");
    return *count;
  }
  // Of this layer, from the first byte of all on. Call `bytes` first: it checks the product.
  int64_t start(const KvLayer& layer) const {
    return layer.capacity * before_ * static_cast<int64_t>(kv_head_bytes(layer.type, head_dim));
  }

  const int64_t kv_heads, head_dim;

 private:
  int64_t before_, total_;
};

// The optional table `rope` of the rows.
inline void read_rope(const Run& run, size_t index, int64_t head_dim, KvWriteArgs& args) {
  if (!run.has(index)) return;
  const auto rope = run.input<float>(index, {args.rows, 2, kAnySize});
  args.rope = rope.data;
  args.pairs = rope.dims[2];
  if (args.pairs > head_dim / 2) {
    run.refuse_input(index, " has " + std::to_string(args.pairs) + " pairs, expected at most " +
                                std::to_string(head_dim / 2));
  }
  if (args.pairs == 0) args.rope = nullptr;
}

// The optional input `relative`, and the attribute `reach` that its shape depends on.
class Relative {
 public:
  Relative(const Creation& creation, size_t index, int64_t heads)
      : reach_(creation.integer("reach", 0, kMaxReach, 0)),
        values_(creation, index, {heads, 2 * reach_ + 1}) {}

  void read(const Run& run, AttentionArgs& args) const {
    args.relative = values_.get_optional(run);
    args.reach = reach_;
  }

 private:
  static constexpr int64_t kMaxReach = 1 << 20;
  int64_t reach_;
  Fixed<float> values_;
};

class CacheLayer {
 public:
  // Where an op has these inputs and this output.
  struct Places {
    size_t k, v, past, cache, rope, cache_out;
  };

  CacheLayer(const Creation& creation, const Places& places)
      : at_(places),
        place_(creation),
        k_offset_(creation.integer("k_offset", 0, kMaxColumn, 0)),
        v_offset_(creation.integer("v_offset", 0, kMaxColumn, 0)) {
    creation.require(!creation.constant(at_.cache),
                     "input cache is part of the model; it is written, so feed it");
  }

  int64_t kv_heads() const { return place_.kv_heads; }
  int64_t head_dim() const { return place_.head_dim; }

  // What is to be written; k and v were read already, with a row for each of the step.
  KvWriteArgs read(const Run& run, const Tensor<float>& k, const Tensor<float>& v) const {
    run.require_columns(at_.k, k.dims[1], k_offset_, kv_heads() * head_dim());
    run.require_columns(at_.v, v.dims[1], v_offset_, kv_heads() * head_dim());
    KvWriteArgs args;
    args.rows = k.dims[0];
    args.k_stride = k.dims[1];
    args.v_stride = v.dims[1];
    args.k = k.data + k_offset_;
    args.v = v.data + v_offset_;
    read_rope(run, at_.rope, head_dim(), args);
    const int64_t* past = run.list<int64_t>(at_.past, 3);
    args.past = past[0];
    args.cache = place_.form(run, at_.past, past, args.rows);
    return args;
  }

  // Makes the cache the output, in place wherever the host lets it, and points the layer there.
  void place(const Run& run, KvLayer& layer) const {
    const int64_t bytes = place_.bytes(run, at_.past, layer);
    // Its bytes hold numbers of up to four bytes.
    const uint8_t* cache = run.list<uint8_t>(at_.cache, bytes, alignof(float));
    uint8_t* out = run.output<uint8_t>(at_.cache_out, {bytes});
    if (out != cache) std::memcpy(out, cache, static_cast<size_t>(bytes));
    layer.base = out + place_.start(layer);
  }

 private:
  Places at_;
  LayerPlace place_;
  int64_t k_offset_, v_offset_;
};

}  // namespace qd::ort
