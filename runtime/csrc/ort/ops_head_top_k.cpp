#include "ort/ops.h"
#include "ort/stored.h"

namespace qd::ort {
namespace {

// The output head over chosen rows: the largest logits, the log of the sum of all, all on request.
class HeadTopK {
 public:
  static constexpr char kName[] = "HeadTopK";
  enum Input { kX, kRows, kFull, kWeights, kBias, kNormWeight };
  static constexpr Formal kInputs[] = {{"x", Element::kFloat},
                                       {"rows", Element::kInt64},
                                       {"full", Element::kInt64},
                                       {"weights", Element::kUint8},
                                       {"bias", Element::kFloat, Presence::kOptional},
                                       {"norm_weight", Element::kFloat, Presence::kOptional},
                                       {"norm_bias", Element::kFloat, Presence::kOptional}};
  enum Output { kValues, kIds, kLogSum, kLogits };
  static constexpr Formal kOutputs[] = {{"values", Element::kFloat},
                                        {"ids", Element::kInt64},
                                        {"log_sum", Element::kFloat},
                                        {"logits", Element::kFloat}};

  explicit HeadTopK(const Creation& creation)
      : stored_(creation, kWeights, false),
        bias_(creation, kBias, {stored_.n}),
        norm_(creation, kNormWeight, stored_.k),
        top_(creation.integer("top", 1, stored_.n)),
        softcap_(creation.real("softcap", 0, 0)) {}

  void compute(const Run& run) const {
    const auto x = run.input<float>(kX, {kAnySize, stored_.k});
    const auto rows = run.input<int64_t>(kRows, {kAnySize});
    const auto full = run.input<int64_t>(kFull, {1});
    run.require_below(kRows, rows, x.dims[0]);
    run.require_below(kFull, full, 2);
    HeadArgs args;
    args.linear.x = x.data;
    args.linear.rows = x.dims[0];
    args.linear.k = stored_.k;
    args.linear.norm = norm_.get(run);
    args.linear.format = stored_.format;
    args.linear.weights = stored_.weights.get(run);
    args.linear.n = stored_.n;
    args.linear.bias = bias_.get_optional(run);
    args.rows = rows.data;
    args.m = rows.dims[0];
    args.top = top_;
    args.softcap = softcap_;
    args.values = run.output<float>(kValues, {args.m, top_});
    args.ids = run.output<int64_t>(kIds, {args.m, top_});
    args.log_sum = run.output<float>(kLogSum, {args.m});
    const bool wants_all = full.data[0] == 1;
    float* logits = run.output<float>(kLogits, {wants_all ? args.m : 0, stored_.n});
    args.logits = wants_all ? logits : nullptr;
    if (args.m > 0) kernels()->head(args, run.parallel());
  }

  static void infer(const Inference& inference) {
    const Dimension m = inference.input(kRows, 0);
    const auto top = inference.integer("top");
    inference.set_output(kValues, {m, top});
    inference.set_output(kIds, {m, top});
    inference.set_output(kLogSum, {m});
    inference.set_output(kLogits, {Dimension(), inference.integer("n")});
  }

 private:
  Stored stored_;
  Fixed<float> bias_;
  InputNorm norm_;
  int64_t top_;
  float softcap_;
};

}  // namespace

Op head_top_k_op() { return Callbacks<HeadTopK>::op(); }

}  // namespace qd::ort
