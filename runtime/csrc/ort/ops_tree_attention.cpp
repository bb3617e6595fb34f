#include <cstring>

#include "checked.h"
#include "ort/ops.h"
#include "tree_rows.h"

namespace qd::ort {
namespace {

constexpr int64_t kMaxHeads = 1 << 20;
constexpr int64_t kMaxHeadDim = 1 << 20;
constexpr int64_t kMaxColumn = 0x7fffffff;

// Writes keys and values of a step into one layer of the cache, in place, and attends.
class TreeAttention {
 public:
  static constexpr char kName[] = "TreeAttention";
  enum Input { kQ, kK, kV, kPositions, kAncestors, kPast, kCache, kRope, kSinks };
  static constexpr Formal kInputs[] = {{"q", Element::kFloat},
                                       {"k", Element::kFloat},
                                       {"v", Element::kFloat},
                                       {"positions", Element::kInt64},
                                       {"ancestors", Element::kInt32},
                                       {"past", Element::kInt64},
                                       {"cache", Element::kUint8},
                                       {"rope", Element::kFloat, Presence::kOptional},
                                       {"sinks", Element::kFloat, Presence::kOptional}};
  enum Output { kY, kCacheOut };
  static constexpr Formal kOutputs[] = {{"y", Element::kFloat}, {"cache_out", Element::kUint8}};
  static constexpr Alias kAliases[] = {{kCache, kCacheOut}};

  explicit TreeAttention(const Creation& creation)
      : heads_(creation.integer("heads", 1, kMaxHeads)),
        kv_heads_(creation.integer("kv_heads", 1, kMaxHeads)),
        head_dim_(creation.integer("head_dim", 1, kMaxHeadDim)),
        scale_(creation.real("scale", kAnyReal)),
        window_(creation.integer("window", 0, kMaxColumn, 0)),
        softcap_(creation.real("softcap", 0, 0)),
        q_offset_(creation.integer("q_offset", 0, kMaxColumn, 0)),
        k_offset_(creation.integer("k_offset", 0, kMaxColumn, 0)),
        v_offset_(creation.integer("v_offset", 0, kMaxColumn, 0)),
        heads_before_(creation.integer("kv_heads_before", 0, kMaxColumn)),
        heads_total_(creation.integer("kv_heads_total", 1, kMaxColumn)),
        sinks_(creation, kSinks, {heads_}) {
    creation.require(heads_ % kv_heads_ == 0, "attribute heads is no multiple of kv_heads");
    creation.require(heads_before_ + kv_heads_ <= heads_total_,
                     "attributes kv_heads_before and kv_heads exceed kv_heads_total");
    creation.require(!creation.constant(kCache),
                     "input cache is part of the model; it is written, so feed it");
  }

  void compute(const Run& run) const {
    const auto q = run.input<float>(kQ, {kAnySize, kAnySize});
    const int64_t rows = q.dims[0];
    const auto k = run.same(kQ, kK) ? q : run.input<float>(kK, {rows, kAnySize});
    const auto v = run.same(kQ, kV) ? q : run.input<float>(kV, {rows, kAnySize});
    run.require_columns(kQ, q.dims[1], q_offset_, heads_ * head_dim_);
    run.require_columns(kK, k.dims[1], k_offset_, kv_heads_ * head_dim_);
    run.require_columns(kV, v.dims[1], v_offset_, kv_heads_ * head_dim_);
    AttentionArgs args;
    args.rows = rows;
    args.q_stride = q.dims[1];
    args.k_stride = k.dims[1];
    args.v_stride = v.dims[1];
    args.q = q.data + q_offset_;
    args.k = k.data + k_offset_;
    args.v = v.data + v_offset_;
    args.heads = heads_;
    args.scale = scale_;
    args.window = window_;
    args.softcap = softcap_;
    args.sinks = sinks_.get_optional(run);
    read_rope(run, args);
    const int64_t* past = run.list<int64_t>(kPast, 3);
    args.past = past[0];
    args.cache = layer_form(run, past, rows);
    read_rows(run, args);
    args.cache.base = place(run, args.cache);
    args.y = run.output<float>(kY, {rows, heads_ * head_dim_});
    if (rows > 0) kernels()->attention(args, run.parallel());
  }

  static void infer(const Inference& inference) {
    const auto heads = inference.integer("heads"), head_dim = inference.integer("head_dim");
    inference.set_output(kY, {inference.input(kQ, 0), product(heads, head_dim)});
    inference.set_output(kCacheOut, {inference.input(kCache, 0)});
  }

 private:
  void read_rope(const Run& run, AttentionArgs& args) const {
    if (!run.has(kRope)) return;
    const auto rope = run.input<float>(kRope, {args.rows, 2, kAnySize});
    args.rope = rope.data;
    args.pairs = rope.dims[2];
    if (args.pairs > head_dim_ / 2) {
      run.refuse("input rope has " + std::to_string(args.pairs) + " pairs, expected at most " +
                 std::to_string(head_dim_ / 2));
    }
    if (args.pairs == 0) args.rope = nullptr;
  }

  void read_rows(const Run& run, AttentionArgs& args) const {
    args.positions = run.list<int64_t>(kPositions, args.rows);
    const auto ancestors = run.input<int32_t>(kAncestors, {args.rows, kAnySize});
    args.depths = ancestors.dims[1];
    args.ancestors = args.depths > 0 ? ancestors.data : nullptr;
    const int64_t row = first_unsound_row(args);
    if (row == args.rows) return;
    const std::string position = std::to_string(args.positions[row]);
    const std::string past = std::to_string(args.past);
    run.refuse("row " + std::to_string(row) + " at position " + position +
               (args.ancestors ? " is no node of a tree that starts at position " + past +
                                     ": see inputs positions and ancestors"
                               : " is not in a chain that starts at position " + past +
                                     ": see inputs positions and past"));
  }

  // The form of the layer, from what input past says: committed rows, type and capacity.
  KvLayer layer_form(const Run& run, const int64_t* past, int64_t rows) const {
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

  // Makes the cache the output, in place wherever the host lets it; where this layer lies in it.
  uint8_t* place(const Run& run, const KvLayer& layer) const {
    const auto head_bytes = static_cast<int64_t>(kv_head_bytes(layer.type, head_dim_));
    const auto bytes = product(layer.capacity, heads_total_, head_bytes);
    if (!bytes) run.refuse("input past[2] asks for more bytes than there are");
    // Its bytes hold numbers of up to four bytes.
    const uint8_t* cache = run.list<uint8_t>(kCache, *bytes, alignof(float));
    uint8_t* out = run.output<uint8_t>(kCacheOut, {*bytes});
    if (out != cache) std::memcpy(out, cache, static_cast<size_t>(*bytes));
    return out + layer.capacity * heads_before_ * head_bytes;
  }

  int64_t heads_, kv_heads_, head_dim_;
  float scale_;
  int64_t window_;
  float softcap_;
  int64_t q_offset_, k_offset_, v_offset_;
  int64_t heads_before_, heads_total_;
  Fixed<float> sinks_;
};

}  // namespace

Op tree_attention_op() { return Callbacks<TreeAttention>::op(); }

}  // namespace qd::ort
