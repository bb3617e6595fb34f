#include "ort/ops.h"

namespace qd::ort {
namespace {

// Cosines and sines of positions times frequencies, made once per step for all layers.
class RopeTable {
 public:
  static constexpr char kName[] = "RopeTable";
  enum Input { kPositions, kFrequencies };
  static constexpr Formal kInputs[] = {{"positions", Element::kInt64},
                                       {"frequencies", Element::kFloat}};
  static constexpr Formal kOutputs[] = {{"table", Element::kFloat}};

  explicit RopeTable(const Creation& creation) : factor_(creation.real("factor", 0, 1)) {}

  void compute(const Run& run) const {
    const auto positions = run.input<int64_t>(kPositions, {kAnySize});
    const auto frequencies = run.input<float>(kFrequencies, {kAnySize});
    RopeTableArgs args;
    args.positions = positions.data;
    args.rows = positions.dims[0];
    args.frequencies = frequencies.data;
    args.pairs = frequencies.dims[0];
    args.factor = factor_;
    args.table = run.output<float>(0, {args.rows, 2, args.pairs});
    if (args.rows > 0 && args.pairs > 0) kernels()->rope_table(args, run.parallel());
  }

  static void infer(const Inference& inference) {
    inference.set_output(0, {inference.input(kPositions, 0), 2, inference.input(kFrequencies, 0)});
  }

 private:
  float factor_;
};

}  // namespace

Op rope_table_op() { return Callbacks<RopeTable>::op(); }

}  // namespace qd::ort
