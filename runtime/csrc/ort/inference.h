// Shapes of outputs before a model runs. Where something is missing or wrong a shape stays unknown:
// the host drops errors of this stage, and the kernel reports them when it is made.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#include "checked.h"
#include "ort/node.h"

namespace qd::ort {

// A dimension: its size, or kAnySize and the name the model gives it, if any.
struct Dimension {
  int64_t size = kAnySize;
  std::string symbol;

  Dimension() = default;
  Dimension(int64_t known) : size(known) {}  // NOLINT: a size is a dimension
  Dimension(std::optional<int64_t> known) : size(known.value_or(kAnySize)) {}  // NOLINT
};

class Inference {
 public:
  Inference(const Api& api, InferenceContext* context, const Formal* outputs)
      : api_(api), context_(context), outputs_(outputs) {}

  // Dimension `axis` of input `index`, as far as it is known.
  Dimension input(size_t index, size_t axis) const;
  // An integer attribute that is not negative, or the fallback.
  std::optional<int64_t> integer(const char* name, std::optional<int64_t> fallback = {}) const;
  // Leaves the shape unknown if it has a dimension with neither size nor name: the host would take
  // the size to be negative.
  void set_output(size_t index, std::initializer_list<Dimension> shape) const;

 private:
  const Api& api_;
  InferenceContext* context_;
  const Formal* outputs_;
};

}  // namespace qd::ort
