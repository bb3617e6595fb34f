#include "ort/ops.h"
#include "ort/stored.h"

namespace qd::ort {
namespace {

// The norm of each of `heads` parts of a row, plus residual.
class Norm {
 public:
  static constexpr char kName[] = "Norm";
  enum Input { kX, kWeight, kBias, kResidual };
  static constexpr Formal kInputs[] = {{"x", Element::kFloat},
                                       {"weight", Element::kFloat, Presence::kOptional},
                                       {"bias", Element::kFloat, Presence::kOptional},
                                       {"residual", Element::kFloat, Presence::kOptional}};
  static constexpr Formal kOutputs[] = {{"y", Element::kFloat}};

  explicit Norm(const Creation& creation)
      : kind_(read_kind(creation)),
        eps_(creation.real("eps", 0)),
        heads_(creation.integer("heads", 1, kMaxSize, 1)),
        width_(creation.integer("width", 1, kMaxSize)),
        columns_(heads_ * width_),
        offset_(creation.integer("offset", 0, kMaxSize, 0)),
        per_head_(creation.integer("per_head", 0, 1, 0) == 1),
        weight_(creation, kWeight, {per_head_ ? columns_ : width_}),
        bias_(creation, kBias, {per_head_ ? columns_ : width_}) {}

  void compute(const Run& run) const {
    const auto x = run.input<float>(kX, {kAnySize, kAnySize});
    NormRowsArgs args;
    args.x = x.data;
    args.rows = x.dims[0];
    args.stride = x.dims[1];
    run.require_columns(kX, args.stride, offset_, columns_);
    args.offset = offset_;
    args.heads = heads_;
    args.width = width_;
    args.per_head = per_head_;
    args.norm = {kind_, eps_, weight_.get_optional(run), bias_.get_optional(run)};
    args.residual = run.optional<float>(kResidual, {args.rows, columns_});
    args.y = run.output<float>(0, {args.rows, columns_});
    if (args.rows > 0) kernels()->norm_rows(args, run.parallel());
  }

  static void infer(const Inference& inference) {
    const auto heads = inference.integer("heads", 1), width = inference.integer("width");
    inference.set_output(0, {inference.input(kX, 0), product(heads, width)});
  }

 private:
  static NormKind read_kind(const Creation& creation) {
    static constexpr const char* kNames[] = {"rms", "layer"};
    return creation.choice("kind", kNames, false) == 0 ? NormKind::kRms : NormKind::kLayer;
  }

  NormKind kind_;
  float eps_;
  int64_t heads_, width_;
  int64_t columns_;  // of y; both factors are below 2^31
  int64_t offset_;
  bool per_head_;
  Fixed<float> weight_, bias_;
};

}  // namespace

Op norm_op() { return Callbacks<Norm>::op(); }

}  // namespace qd::ort
