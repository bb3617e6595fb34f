#include "ort/ops.h"
#include "ort/stored.h"

namespace qd::ort {
namespace {

// Rows of a stored matrix as float32.
class Embed {
 public:
  static constexpr char kName[] = "Embed";
  enum Input { kIds, kWeights };
  static constexpr Formal kInputs[] = {{"ids", Element::kInt64}, {"weights", Element::kUint8}};
  static constexpr Formal kOutputs[] = {{"y", Element::kFloat}};

  explicit Embed(const Creation& creation)
      : stored_(creation, kWeights, false), scale_(creation.real("scale", kAnyReal, 1)) {}

  void compute(const Run& run) const {
    const auto ids = run.input<int64_t>(kIds, {kAnySize});
    run.require_below(kIds, ids, stored_.n);
    EmbedArgs args;
    args.format = stored_.format;
    args.weights = stored_.weights.get(run);
    args.n = stored_.n;
    args.k = stored_.k;
    args.ids = ids.data;
    args.rows = ids.dims[0];
    args.scale = scale_;
    args.y = run.output<float>(0, {args.rows, stored_.k});
    if (args.rows > 0) kernels()->embed(args, run.parallel());
  }

  static void infer(const Inference& inference) {
    inference.set_output(0, {inference.input(kIds, 0), inference.integer("k")});
  }

 private:
  Stored stored_;
  float scale_;
};

}  // namespace

Op embed_op() { return Callbacks<Embed>::op(); }

}  // namespace qd::ort
