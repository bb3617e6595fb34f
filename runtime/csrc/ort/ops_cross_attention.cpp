#include "ort/cache_layer.h"
#include "ort/ops.h"

namespace qd::ort {
namespace {

// All rows see the keys and values of a source, one layer of a memory that is only read.
class CrossAttention {
 public:
  static constexpr char kName[] = "CrossAttention";
  enum Input { kQ, kSource, kMemory };
  static constexpr Formal kInputs[] = {
      {"q", Element::kFloat}, {"source", Element::kInt64}, {"memory", Element::kUint8}};
  static constexpr Formal kOutputs[] = {{"y", Element::kFloat}};

  explicit CrossAttention(const Creation& creation)
      : heads_(creation.integer("heads", 1, kMaxHeads)),
        place_(creation),
        scale_(creation.real("scale", kAnyReal)),
        q_offset_(creation.integer("q_offset", 0, kMaxColumn, 0)) {
    creation.require(heads_ % place_.kv_heads == 0, "attribute heads is no multiple of kv_heads");
  }

  void compute(const Run& run) const {
    const int64_t columns = heads_ * place_.head_dim;
    const auto q = run.input<float>(kQ, {kAnySize, kAnySize});
    run.require_columns(kQ, q.dims[1], q_offset_, columns);
    AttentionArgs args;
    args.kv.rows = q.dims[0];
    args.q = q.data + q_offset_;
    args.q_stride = q.dims[1];
    args.heads = heads_;
    args.scale = scale_;
    const int64_t* source = run.list<int64_t>(kSource, 3);
    if (source[0] < 1) {
      run.refuse_input(kSource, "[0] is " + std::to_string(source[0]) +
                                    ", expected at least one row of a source");
    }
    args.seen = source[0];
    args.kv.cache = place_.form(run, kSource, source, 0);
    const int64_t bytes = place_.bytes(run, kSource, args.kv.cache);
    // The kernel only writes where it is given keys.
    const uint8_t* memory = run.list<uint8_t>(kMemory, bytes, alignof(float));
    args.kv.cache.base = const_cast<uint8_t*>(memory) + place_.start(args.kv.cache);
    args.y = run.output<float>(0, {args.kv.rows, columns});
    if (args.kv.rows > 0) kernels()->attention(args, run.parallel());
  }

  static void infer(const Inference& inference) {
    const auto heads = inference.integer("heads"), head_dim = inference.integer("head_dim");
    inference.set_output(0, {inference.input(kQ, 0), product(heads, head_dim)});
  }

 private:
  int64_t heads_;
  LayerPlace place_;
  float scale_;
  int64_t q_offset_;
};

}  // namespace

Op cross_attention_op() { return Callbacks<CrossAttention>::op(); }

}  // namespace qd::ort
