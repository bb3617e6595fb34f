#include "ort/inference.h"

namespace qd::ort {

Dimension Inference::input(size_t index, size_t axis) const {
  size_t count = 0, rank = 0;
  api_(kInferGetInputCount, context_, &count);
  TensorInfo* info = nullptr;
  if (index >= count || !api_.succeeds(kInferGetInput, context_, index, &info) || !info) return {};
  api_(kGetRank, info, &rank);
  if (axis >= rank) return {};
  std::vector<int64_t> sizes(rank);
  std::vector<const char*> symbols(rank);
  api_(kGetDimensions, info, sizes.data(), rank);
  api_(kGetSymbols, info, symbols.data(), rank);
  Dimension found;
  found.size = sizes[axis] < 0 ? kAnySize : sizes[axis];
  if (found.size == kAnySize && symbols[axis]) found.symbol = symbols[axis];
  return found;
}

std::optional<int64_t> Inference::integer(const char* name, std::optional<int64_t> fallback) const {
  const Attribute* attribute = nullptr;
  if (!api_.succeeds(kInferGetAttribute, context_, name, &attribute) || !attribute) return fallback;
  int64_t value = 0;
  size_t bytes = 0;
  const bool read =
      api_.succeeds(kReadAttribute, attribute, AttributeKind::kInt, &value, sizeof value, &bytes);
  if (!read || value < 0) return std::nullopt;
  return value;
}

void Inference::set_output(size_t index, std::initializer_list<Dimension> shape) const {
  std::vector<int64_t> sizes;
  std::vector<const char*> symbols;
  for (const Dimension& dimension : shape) {
    if (dimension.size == kAnySize && dimension.symbol.empty()) return;
    sizes.push_back(dimension.size);
    symbols.push_back(dimension.symbol.c_str());
  }
  InfoHolder holder(api_);
  api_(kCreateTensorInfo, &holder.info);
  api_(kSetElementType, holder.info, outputs_[index].type);
  api_(kSetDimensions, holder.info, sizes.data(), sizes.size());
  api_(kSetSymbols, holder.info, symbols.data(), symbols.size());
  api_(kInferSetOutput, context_, index, holder.info);
}

}  // namespace qd::ort
