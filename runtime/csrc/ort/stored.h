// What the ops that read a stored matrix share: its attributes, its bytes, a norm before it.
#pragma once

#include "checked.h"
#include "ort/node.h"

namespace qd::ort {

constexpr int64_t kMaxSize = 0x7fffffff;

// Attributes format, k (columns) and n (outputs), and the weights uint8 [blocks, record]. The bytes
// hold numbers of up to four bytes, hence their alignment.
struct Stored {
  WeightFormat format;
  int64_t k, n;
  Fixed<uint8_t> weights;

  Stored(const Creation& creation, size_t index, bool gated)
      : format(read_format(creation)),
        k(creation.integer("k", 1, kMaxSize)),
        n(creation.integer("n", 1, kMaxSize)),
        weights(creation, index, shape(creation, gated), alignof(float)) {}

 private:
  static WeightFormat read_format(const Creation& creation) {
    static constexpr const char* kNames[] = {"f32", "f16", "w4",  "w4m", "w4k",
                                             "w6k", "w8",  "w8m", "w8k"};
    static_assert(std::size(kNames) == kWeightFormats);
    return static_cast<WeightFormat>(creation.choice("format", kNames, false));
  }

  Shape shape(const Creation& creation, bool gated) const {
    const size_t record = record_bytes(format, k);
    if (record == 0) {
      creation.refuse("attribute k is " + std::to_string(k) +
                      ", which is no multiple of the group of the format");
    }
    return {ceil_div(n, kBlock) * (gated ? 2 : 1), static_cast<int64_t>(record)};
  }
};

// Attributes norm and norm_eps, and the optional inputs norm_weight and norm_bias [width].
struct InputNorm {
  NormKind kind;
  float eps;
  size_t index;
  Fixed<float> weight, bias;

  // index: that of norm_weight; norm_bias follows it.
  InputNorm(const Creation& creation, size_t weight_index, int64_t width)
      : kind(read_kind(creation)),
        eps(kind == NormKind::kNone ? creation.real("norm_eps", 0, 0)
                                    : creation.real("norm_eps", 0)),
        index(weight_index),
        weight(creation, index, {width}),
        bias(creation, index + 1, {width}) {}

  NormArgs get(const Run& run) const {
    if (kind == NormKind::kNone) {
      run.require_absent(index, "without a norm");
      run.require_absent(index + 1, "without a norm");
      return {};
    }
    return {kind, eps, weight.get_optional(run), bias.get_optional(run)};
  }

 private:
  static NormKind read_kind(const Creation& creation) {
    static constexpr const char* kNames[] = {"none", "rms", "layer"};
    return static_cast<NormKind>(creation.choice("norm", kNames, true));
  }
};

}  // namespace qd::ort
