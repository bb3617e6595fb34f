#include "ort/ops.h"
#include "ort/stored.h"

namespace qd::ort {
namespace {

// y = act(norm(x) . weights + bias) + residual; gated: act(gate) * up.
class QLinear {
 public:
  static constexpr char kName[] = "QLinear";
  enum Input { kX, kWeights, kBias, kResidual, kNormWeight };
  static constexpr Formal kInputs[] = {{"x", Element::kFloat},
                                       {"weights", Element::kUint8},
                                       {"bias", Element::kFloat, Presence::kOptional},
                                       {"residual", Element::kFloat, Presence::kOptional},
                                       {"norm_weight", Element::kFloat, Presence::kOptional},
                                       {"norm_bias", Element::kFloat, Presence::kOptional}};
  static constexpr Formal kOutputs[] = {{"y", Element::kFloat}};

  explicit QLinear(const Creation& creation)
      : gated_(creation.integer("gated", 0, 1, 0) == 1),
        stored_(creation, kWeights, gated_),
        bias_(creation, kBias, {stored_.n * (gated_ ? 2 : 1)}),
        norm_(creation, kNormWeight, stored_.k),
        activation_(read_activation(creation)) {}

  void compute(const Run& run) const {
    const auto x = run.input<float>(kX, {kAnySize, stored_.k});
    const int64_t rows = x.dims[0];
    LinearArgs args;
    args.x = x.data;
    args.rows = rows;
    args.k = stored_.k;
    args.norm = norm_.get(run);
    args.format = stored_.format;
    args.weights = stored_.weights.get(run);
    args.n = stored_.n;
    args.bias = bias_.get_optional(run);
    args.residual = run.optional<float>(kResidual, {rows, stored_.n});
    args.activation = activation_;
    args.gated = gated_;
    args.y = run.output<float>(0, {rows, stored_.n});
    if (rows > 0) kernels()->linear(args, run.parallel());
  }

  static void infer(const Inference& inference) {
    inference.set_output(0, {inference.input(kX, 0), inference.integer("n")});
  }

 private:
  static Activation read_activation(const Creation& creation) {
    static constexpr const char* kNames[] = {"none", "silu", "gelu", "gelu_tanh", "relu"};
    return static_cast<Activation>(creation.choice("activation", kNames, true));
  }

  bool gated_;
  Stored stored_;
  Fixed<float> bias_;
  InputNorm norm_;
  Activation activation_;
};

}  // namespace

Op qlinear_op() { return Callbacks<QLinear>::op(); }

}  // namespace qd::ort
