#include "kernels/scratch.h"
#include "ort/cache_layer.h"
#include "ort/ops.h"

namespace qd::ort {
namespace {

// All rows see all rows: the self attention of an encoder. Nothing is cached.
class EncodeAttention {
 public:
  static constexpr char kName[] = "EncodeAttention";
  enum Input { kQ, kK, kV, kRope, kRelative };
  static constexpr Formal kInputs[] = {{"q", Element::kFloat},
                                       {"k", Element::kFloat},
                                       {"v", Element::kFloat},
                                       {"rope", Element::kFloat, Presence::kOptional},
                                       {"relative", Element::kFloat, Presence::kOptional}};
  static constexpr Formal kOutputs[] = {{"y", Element::kFloat}};

  explicit EncodeAttention(const Creation& creation)
      : heads_(creation.integer("heads", 1, kMaxHeads)),
        kv_heads_(creation.integer("kv_heads", 1, kMaxHeads)),
        head_dim_(creation.integer("head_dim", 1, kMaxHeadDim)),
        scale_(creation.real("scale", kAnyReal)),
        q_offset_(creation.integer("q_offset", 0, kMaxColumn, 0)),
        k_offset_(creation.integer("k_offset", 0, kMaxColumn, 0)),
        v_offset_(creation.integer("v_offset", 0, kMaxColumn, 0)),
        relative_(creation, kRelative, heads_) {
    creation.require(heads_ % kv_heads_ == 0, "attribute heads is no multiple of kv_heads");
  }

  void compute(const Run& run) const {
    const int64_t columns = heads_ * head_dim_, kv_columns = kv_heads_ * head_dim_;
    const auto q = run.input<float>(kQ, {kAnySize, kAnySize});
    const int64_t rows = q.dims[0];
    const auto k = run.same(kQ, kK) ? q : run.input<float>(kK, {rows, kAnySize});
    const auto v = run.same(kQ, kV) ? q : run.input<float>(kV, {rows, kAnySize});
    run.require_columns(kQ, q.dims[1], q_offset_, columns);
    run.require_columns(kK, k.dims[1], k_offset_, kv_columns);
    run.require_columns(kV, v.dims[1], v_offset_, kv_columns);
    AttentionArgs args;
    args.kv.k = k.data + k_offset_;
    args.kv.v = v.data + v_offset_;
    args.kv.k_stride = k.dims[1];
    args.kv.v_stride = v.dims[1];
    args.kv.rows = rows;
    read_rope(run, kRope, head_dim_, args.kv);
    args.q = q.data + q_offset_;
    args.q_stride = q.dims[1];
    args.heads = heads_;
    args.scale = scale_;
    args.seen = rows;
    relative_.read(run, args);
    args.y = run.output<float>(0, {rows, columns});
    if (rows == 0) return;
    args.kv.cache = blocks(run, rows);
    kernels()->attention(args, run.parallel());
  }

  static void infer(const Inference& inference) {
    const auto heads = inference.integer("heads"), head_dim = inference.integer("head_dim");
    inference.set_output(0, {inference.input(kQ, 0), product(heads, head_dim)});
  }

 private:
  // Room for keys and values in the layout that the kernel reads, for this run only.
  KvLayer blocks(const Run& run, int64_t rows) const {
    const int64_t capacity = ceil_div(rows, kBlock) * kBlock;
    const auto bytes = product(capacity, kv_heads_, kv_head_bytes(KvType::kF32, head_dim_));
    if (!bytes) run.refuse("the rows need more bytes than there are");
    auto* memory = static_cast<uint8_t*>(scratch(Scratch::kEncoder, static_cast<size_t>(*bytes)));
    return {KvType::kF32, capacity, kv_heads_, head_dim_, memory};
  }

  int64_t heads_, kv_heads_, head_dim_;
  float scale_;
  int64_t q_offset_, k_offset_, v_offset_;
  Relative relative_;
};

}  // namespace

Op encode_attention_op() { return Callbacks<EncodeAttention>::op(); }

}  // namespace qd::ort
