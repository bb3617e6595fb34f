// What the ops share that write keys and values of a step into a layer of the cache: attributes,
// and the inputs k, v, past, cache and rope.
#pragma once

#include <cstring>

#include "checked.h"
#include "ort/node.h"

namespace qd::ort {

constexpr int64_t kMaxHeads = 1 << 20;
constexpr int64_t kMaxHeadDim = 1 << 20;
constexpr int64_t kMaxColumn = 0x7fffffff;

class CacheLayer {
 public:
  // Where an op has these inputs and this output.
  struct Places {
    size_t k, v, past, cache, rope, cache_out;
  };

  CacheLayer(const Creation& creation, const Places& places)
      : at_(places),
        kv_heads_(creation.integer("kv_heads", 1, kMaxHeads)),
        head_dim_(creation.integer("head_dim", 1, kMaxHeadDim)),
        k_offset_(creation.integer("k_offset", 0, kMaxColumn, 0)),
        v_offset_(creation.integer("v_offset", 0, kMaxColumn, 0)),
        heads_before_(creation.integer("kv_heads_before", 0, kMaxColumn)),
        heads_total_(creation.integer("kv_heads_total", 1, kMaxColumn)) {
    creation.require(heads_before_ + kv_heads_ <= heads_total_,
                     "attributes kv_heads_before and kv_heads exceed kv_heads_total");
    creation.require(!creation.constant(at_.cache),
                     "input cache is part of the model; it is written, so feed it");
  }

  int64_t kv_heads() const { return kv_heads_; }
  int64_t head_dim() const { return head_dim_; }

  // What is to be written; k and v were read already, with a row for each of the step.
  KvWriteArgs read(const Run& run, const Tensor<float>& k, const Tensor<float>& v) const {
    run.require_columns(at_.k, k.dims[1], k_offset_, kv_heads_ * head_dim_);
    run.require_columns(at_.v, v.dims[1], v_offset_, kv_heads_ * head_dim_);
    KvWriteArgs args;
    args.rows = k.dims[0];
    args.k_stride = k.dims[1];
    args.v_stride = v.dims[1];
    args.k = k.data + k_offset_;
    args.v = v.data + v_offset_;
    read_rope(run, args);
    const int64_t* past = run.list<int64_t>(at_.past, 3);
    args.past = past[0];
    args.cache = form(run, past, args.rows);
    return args;
  }

  // Makes the cache the output, in place wherever the host lets it, and points the layer there.
  void place(const Run& run, KvLayer& layer) const {
    const auto head_bytes = static_cast<int64_t>(kv_head_bytes(layer.type, head_dim_));
    const auto bytes = product(layer.capacity, heads_total_, head_bytes);
    if (!bytes) run.refuse("input past[2] asks for more bytes than there are");
    // Its bytes hold numbers of up to four bytes.
    const uint8_t* cache = run.list<uint8_t>(at_.cache, *bytes, alignof(float));
    uint8_t* out = run.output<uint8_t>(at_.cache_out, {*bytes});
    if (out != cache) std::memcpy(out, cache, static_cast<size_t>(*bytes));
    layer.base = out + layer.capacity * heads_before_ * head_bytes;
  }

 private:
  void read_rope(const Run& run, KvWriteArgs& args) const {
    if (!run.has(at_.rope)) return;
    const auto rope = run.input<float>(at_.rope, {args.rows, 2, kAnySize});
    args.rope = rope.data;
    args.pairs = rope.dims[2];
    if (args.pairs > head_dim_ / 2) {
      run.refuse("input rope has " + std::to_string(args.pairs) + " pairs, expected at most " +
                 std::to_string(head_dim_ / 2));
    }
    if (args.pairs == 0) args.rope = nullptr;
  }

  // The form of the layer, from what input past says: committed rows, type and capacity.
  KvLayer form(const Run& run, const int64_t* past, int64_t rows) const {
    const int64_t committed = past[0], type = past[1], capacity = past[2];
    if (type < 0 || type > static_cast<int64_t>(KvType::kI8)) {
      run.refuse("input past[1] is " + std::to_string(type) +
                 ", expected 0 (float32), 1 (float16) or 2 (int8)");
    }
    if (capacity < kBlock || capacity % kBlock != 0) {
      run.refuse("input past[2] is " + std::to_string(capacity) +
                 ", expected slots in a positive multiple of 16");
    }
    if (committed < 0 || committed > capacity || rows > capacity - committed) {
      run.refuse("input past[0] is " + std::to_string(committed) + ": with " +
                 std::to_string(rows) + " new rows that does not fit a cache of " +
                 std::to_string(capacity) + " slots");
    }
    return {static_cast<KvType>(type), capacity, kv_heads_, head_dim_, nullptr};
  }

  Places at_;
  int64_t kv_heads_, head_dim_;
  int64_t k_offset_, v_offset_;
  int64_t heads_before_, heads_total_;
};

}  // namespace qd::ort
