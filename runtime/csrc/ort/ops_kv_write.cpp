#include "ort/cache_layer.h"
#include "ort/ops.h"

namespace qd::ort {
namespace {

// Writes keys and values of a step into one layer of the cache, in place, as TreeAttention does.
class KvWrite {
 public:
  static constexpr char kName[] = "KvWrite";
  enum Input { kK, kV, kPast, kCache, kRope };
  static constexpr Formal kInputs[] = {{"k", Element::kFloat},
                                       {"v", Element::kFloat},
                                       {"past", Element::kInt64},
                                       {"cache", Element::kUint8},
                                       {"rope", Element::kFloat, Presence::kOptional}};
  static constexpr Formal kOutputs[] = {{"cache_out", Element::kUint8}};
  static constexpr Alias kAliases[] = {{kCache, 0}};

  explicit KvWrite(const Creation& creation)
      : layer_(creation, {kK, kV, kPast, kCache, kRope, 0}) {}

  void compute(const Run& run) const {
    const auto k = run.input<float>(kK, {kAnySize, kAnySize});
    const auto v = run.same(kK, kV) ? k : run.input<float>(kV, {k.dims[0], kAnySize});
    KvWriteArgs args = layer_.read(run, k, v);
    layer_.place(run, args.cache);
    if (args.rows > 0) kernels()->kv_write(args, run.parallel());
  }

  static void infer(const Inference& inference) {
    inference.set_output(0, {inference.input(kCache, 0)});
  }

 private:
  CacheLayer layer_;
};

}  // namespace

Op kv_write_op() { return Callbacks<KvWrite>::op(); }

}  // namespace qd::ort
