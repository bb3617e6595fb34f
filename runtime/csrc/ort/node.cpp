#include "ort/node.h"

#include <algorithm>
#include <cstring>

namespace qd::ort {
namespace {

// Text of a model as a message may show it.
std::string printable(std::string text) {
  constexpr size_t kLongest = 80;
  if (text.size() > kLongest) text = text.substr(0, kLongest) + "...";
  for (char& c : text) c = c >= ' ' && c <= '~' ? c : '?';
  return text;
}

const char* type_name(Element type) {
  switch (type) {
    case Element::kFloat: return "float32";
    case Element::kUint8: return "uint8";
    case Element::kInt32: return "int32";
    case Element::kInt64: return "int64";
    default: return "of another type";
  }
}

std::string shape_text(const int64_t* dims, size_t rank) {
  std::string text = "[";
  for (size_t i = 0; i < rank; ++i) {
    text += (i ? ", " : "") + (dims[i] == kAnySize ? "any" : std::to_string(dims[i]));
  }
  return text + "]";
}

std::string node_name(const Api& api, const KernelInfo* info) {
  size_t size = 0;
  api.succeeds(kInfoGetNodeName, info, nullptr, &size);
  std::string name(std::max<size_t>(size, 1), '\0');
  api(kInfoGetNodeName, info, name.data(), &size);
  name.resize(std::strlen(name.c_str()));
  return name;
}

std::string range_text(int64_t low, int64_t high) {
  return "an integer from " + std::to_string(low) + " to " + std::to_string(high);
}

}  // namespace

Node::Node(const Host& host, const KernelInfo* info, const char* op, const Formal* inputs,
           const Formal* outputs)
    : api_(host.api),
      threads_(host.threads),
      label_(op + (" '" + printable(node_name(host.api, info)) + "'")),
      inputs_(inputs),
      outputs_(outputs) {}

void Node::refuse(const std::string& text) const { throw Invalid(label_ + ": " + text); }

const void* Node::checked_data(const Value* value, size_t index, Element type, size_t alignment,
                               const Shape& expected, int64_t* dims) const {
  InfoHolder holder(api_);
  api_(kGetTensorTypeAndShape, value, &holder.info);
  Element found = Element::kAny;
  size_t rank = 0;
  api_(kGetElementType, holder.info, &found);
  api_(kGetRank, holder.info, &rank);
  if (found != type) {
    refuse(std::string("input ") + inputs_[index].name + " is " + type_name(found) + ", expected " +
           type_name(type));
  }
  if (rank <= kMaxRank) api_(kGetDimensions, holder.info, dims, rank);
  if (!expected.admits(dims, rank)) refuse_shape(holder.info, index, expected);
  void* data = nullptr;
  // The host has no other way to the data of an input; they are only read.
  api_(kGetTensorMutableData, const_cast<Value*>(value), &data);
  if (reinterpret_cast<uintptr_t>(data) % alignment != 0) {
    refuse(std::string("input ") + inputs_[index].name + " starts at an address that is no " +
           "multiple of " + std::to_string(alignment) + "; align the data of the model");
  }
  // An empty tensor is there all the same.
  static const int64_t kEmpty = 0;
  return data ? data : &kEmpty;
}

const void* Node::bytes(const Value* value, size_t count) const {
  size_t found = 0;
  api_(kGetTensorBytes, value, &found);
  void* data = nullptr;
  if (found == count) api_(kGetTensorMutableData, const_cast<Value*>(value), &data);
  return data;
}

void Node::refuse_shape(const TensorInfo* info, size_t index, const Shape& expected) const {
  size_t rank = 0;
  api_(kGetRank, info, &rank);
  std::vector<int64_t> dims(rank);
  api_(kGetDimensions, info, dims.data(), rank);
  refuse(std::string("input ") + inputs_[index].name + " has shape " +
         shape_text(dims.data(), rank) + ", expected " +
         shape_text(expected.dims.data(), expected.rank));
}

Creation::Creation(const Host& host, const KernelInfo* info, const char* op, const Formal* inputs,
                   const Formal* outputs)
    : Node(host, info, op, inputs, outputs), info_(info) {
  api()(kInfoGetInputCount, info, &input_count_);
}

void Creation::refuse_attribute(const char* name, const std::string& found,
                                const std::string& expected) const {
  refuse(std::string("attribute ") + name + " is " + found + ", expected " + expected);
}

void Creation::check_absent(const char* name, const std::string& expected,
                            bool has_fallback) const {
  int64_t integer = 0;
  float real = 0;
  size_t text = 0, reals = 0, integers = 0;
  if (api().succeeds(kGetAttributeInt, info_, name, &integer) ||
      api().succeeds(kGetAttributeFloat, info_, name, &real) ||
      api().succeeds(kGetAttributeString, info_, name, nullptr, &text) ||
      api().succeeds(kGetAttributeInts, info_, name, nullptr, &integers) ||
      api().succeeds(kGetAttributeFloats, info_, name, nullptr, &reals)) {
    refuse_attribute(name, "of another kind", expected);
  }
  if (!has_fallback) refuse_attribute(name, "missing", expected);
}

int64_t Creation::integer(const char* name, int64_t low, int64_t high) const {
  int64_t value = 0;
  if (!api().succeeds(kGetAttributeInt, info_, name, &value)) {
    check_absent(name, range_text(low, high), false);
  }
  if (value < low || value > high) {
    refuse_attribute(name, std::to_string(value), range_text(low, high));
  }
  return value;
}

int64_t Creation::integer(const char* name, int64_t low, int64_t high, int64_t fallback) const {
  int64_t value = 0;
  if (api().succeeds(kGetAttributeInt, info_, name, &value)) return integer(name, low, high);
  check_absent(name, range_text(low, high), true);
  return fallback;
}

float Creation::real(const char* name, float low) const {
  const std::string expected =
      "a finite number" + (low == kAnyReal ? "" : " from " + std::to_string(low) + " on");
  float value = 0;
  if (!api().succeeds(kGetAttributeFloat, info_, name, &value)) {
    check_absent(name, expected, false);
  }
  if (!std::isfinite(value) || value < low) {
    refuse_attribute(name, std::to_string(value), expected);
  }
  return value;
}

float Creation::real(const char* name, float low, float fallback) const {
  float value = 0;
  if (api().succeeds(kGetAttributeFloat, info_, name, &value)) return real(name, low);
  check_absent(name, "a number", true);
  return fallback;
}

int Creation::choice(const char* name, const char* const* names, size_t count,
                     bool has_fallback) const {
  std::string expected = "one of";
  for (size_t i = 0; i < count; ++i) expected += std::string(i ? ", " : " ") + names[i];
  size_t size = 0;
  if (!api().succeeds(kGetAttributeString, info_, name, nullptr, &size)) {
    check_absent(name, expected, has_fallback);
    return 0;
  }
  std::string value(std::max<size_t>(size, 1), '\0');
  api()(kGetAttributeString, info_, name, value.data(), &size);
  value.resize(std::min(size, value.size()));
  if (!value.empty() && value.back() == '\0') value.pop_back();
  const auto found = std::find(names, names + count, value);
  if (found == names + count) refuse_attribute(name, "'" + printable(value) + "'", expected);
  return static_cast<int>(found - names);
}

const Value* Creation::constant(size_t index) const {
  int is_constant = 0;
  const Value* value = nullptr;
  if (index >= input_count_) return nullptr;
  api()(kInfoGetConstantInput, info_, index, &is_constant, &value);
  return is_constant ? value : nullptr;
}

void Run::refuse_input(size_t index, const std::string& text) const {
  refuse(std::string("input ") + node_.formal_input(index).name + text);
}

void Run::require_columns(size_t index, int64_t found, int64_t offset, int64_t used) const {
  if (found - offset >= used) return;
  refuse_input(index, " has " + std::to_string(found) + " columns, expected at least " +
                          std::to_string(offset + used));
}

void Run::require_below(size_t index, const Tensor<int64_t>& values, int64_t limit) const {
  for (int64_t i = 0; i < values.dims[0]; ++i) {
    if (values.data[i] >= 0 && values.data[i] < limit) continue;
    refuse_input(index, "[" + std::to_string(i) + "] is " + std::to_string(values.data[i]) +
                            ", expected at least 0 and below " + std::to_string(limit));
  }
}

void* Run::allocate(size_t index, const Shape& shape) const {
  Value* value = nullptr;
  void* data = nullptr;
  node_.api()(kContextGetOutput, context_, index, shape.dims.data(), shape.rank, &value);
  if (!value) {
    node_.refuse(std::string("output ") + node_.formal_output(index).name + " is missing");
  }
  node_.api()(kGetTensorMutableData, value, &data);
  return data;
}

void Run::run_by_host(const Parallel& self, size_t total, void (*body)(void*, size_t), void* arg) {
  const Run& run = *static_cast<const Run*>(self.context);
  if (total == 0) return;
  if (total == 1) return body(arg, 0);
  constexpr size_t kAsThreadsBecomeFree = 0;
  run.node_.api()(kContextParallelFor, run.context_, body, total, kAsThreadsBecomeFree, arg);
}

}  // namespace qd::ort
