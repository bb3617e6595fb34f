// What every op of ours shares: refusing with a message, reading attributes and inputs, and turning
// exceptions into statuses. An op never trusts a model or its caller: a wrong one gets an error.
#pragma once

#include <array>
#include <cmath>
#include <exception>
#include <initializer_list>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/pool.h"
#include "ort/abi.h"

namespace qd::ort {

// A model or a call that is wrong; the text reaches the user.
class Invalid : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Runs `body`; whatever it throws becomes a status.
template <typename Body>
Status* guarded(const Api& api, Body&& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const HostError& error) {
    return error.status;
  } catch (const Invalid& error) {
    return api.call(kCreateStatus, StatusCode::kInvalidArgument, error.what());
  } catch (const std::bad_alloc&) {
    return api.call(kCreateStatus, StatusCode::kFail, "quickdraft: out of memory");
  } catch (const std::exception& error) {
    return api.call(kCreateStatus, StatusCode::kFail, error.what());
  }
}

// Releases a tensor info of ours at the end of a scope.
struct InfoHolder {
  const Api& api;
  TensorInfo* info = nullptr;

  explicit InfoHolder(const Api& owner) : api(owner) {}
  InfoHolder(const InfoHolder&) = delete;
  InfoHolder& operator=(const InfoHolder&) = delete;
  ~InfoHolder() {
    if (info) api.call(kReleaseTensorInfo, info);
  }
};

// An input or output as the op declares it.
struct Formal {
  const char* name;
  Element type;
  Presence presence = Presence::kRequired;
};

template <typename T>
constexpr Element kElement = Element::kAny;
template <>
inline constexpr Element kElement<float> = Element::kFloat;
template <>
inline constexpr Element kElement<uint8_t> = Element::kUint8;
template <>
inline constexpr Element kElement<int32_t> = Element::kInt32;
template <>
inline constexpr Element kElement<int64_t> = Element::kInt64;

// The lower limit of a number that has none.
constexpr float kAnyReal = std::numeric_limits<float>::lowest();
// A dimension that may have any size.
constexpr int64_t kAnySize = -1;
constexpr size_t kMaxRank = 3;

// A shape of up to three dimensions: one that a tensor has, or one that it must have.
struct Shape {
  size_t rank = 0;
  std::array<int64_t, kMaxRank> dims{};

  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes) : rank(sizes.size()) {
    for (size_t i = 0; i < rank; ++i) dims[i] = sizes.begin()[i];
  }
  bool admits(const int64_t* found, size_t found_rank) const {
    bool same = rank == found_rank;
    for (size_t i = 0; same && i < rank; ++i) same = dims[i] == kAnySize || dims[i] == found[i];
    return same;
  }
};

template <typename T>
struct Tensor {
  const T* data = nullptr;  // null only where an optional input is absent
  std::array<int64_t, kMaxRank> dims{};
};

// Where an op runs. threads: of ours, for its loops; 0: the host's are used.
struct Host {
  Api api;
  int threads;
};

// A node of a model: what its messages need.
class Node {
 public:
  Node(const Host& host, const KernelInfo* info, const char* op, const Formal* inputs,
       const Formal* outputs);

  const Api& api() const { return api_; }
  int threads() const { return threads_; }
  const Formal& formal_input(size_t index) const { return inputs_[index]; }
  const Formal& formal_output(size_t index) const { return outputs_[index]; }

  // The data of a tensor that has this many bytes, or null.
  const void* bytes(const Value* value, size_t count) const;

  // Throws Invalid with the op and the node before the text.
  [[noreturn]] void refuse(const std::string& text) const;
  void require(bool sound, const char* text) const {
    if (!sound) refuse(text);
  }

  // The data of input `index`; its type, shape and alignment are checked.
  template <typename T>
  Tensor<T> view(const Value* value, size_t index, const Shape& expected,
                 size_t alignment = alignof(T)) const {
    Tensor<T> tensor;
    tensor.data = static_cast<const T*>(
        checked_data(value, index, kElement<T>, alignment, expected, tensor.dims.data()));
    return tensor;
  }

 private:
  const void* checked_data(const Value* value, size_t index, Element type, size_t alignment,
                           const Shape& expected, int64_t* dims) const;
  [[noreturn]] void refuse_shape(const TensorInfo* info, size_t index, const Shape& expected) const;

  Api api_;
  int threads_;
  std::string label_;
  const Formal* inputs_;
  const Formal* outputs_;
};

// The creation of a kernel: its attributes and constant inputs.
class Creation : public Node {
 public:
  Creation(const Host& host, const KernelInfo* info, const char* op, const Formal* inputs,
           const Formal* outputs);

  // Attributes within a range. Without a fallback they must be there.
  int64_t integer(const char* name, int64_t low, int64_t high) const;
  int64_t integer(const char* name, int64_t low, int64_t high, int64_t fallback) const;
  float real(const char* name, float low) const;
  float real(const char* name, float low, float fallback) const;
  // The index of a string attribute among `names`; the first one is the fallback, if there is one.
  template <size_t kCount>
  int choice(const char* name, const char* const (&names)[kCount], bool has_fallback) const {
    return choice(name, names, kCount, has_fallback);
  }

  // Input `index` if it is the same in every run, else null.
  const Value* constant(size_t index) const;

 private:
  int choice(const char* name, const char* const* names, size_t count, bool has_fallback) const;
  [[noreturn]] void refuse_attribute(const char* name, const std::string& found,
                                     const std::string& expected) const;
  // What a missing attribute means: refuses unless it has a fallback. An attribute of another kind
  // counts as wrong, not as missing.
  void check_absent(const char* name, const std::string& expected, bool has_fallback) const;

  const KernelInfo* info_;
  size_t input_count_ = 0;
};

// One run of a kernel: its inputs, its outputs, its threads. Reading a shape has a cost, hence one
// call per input that gives both data and shape.
class Run {
 public:
  Run(const Node& node, KernelContext* context) : node_(node), context_(context) {}

  // Input `index`; refuses if it is absent.
  template <typename T>
  Tensor<T> input(size_t index, const Shape& expected, size_t alignment = alignof(T)) const {
    const Value* value = fetch(index);
    if (!value) refuse_input(index, " is missing");
    return node_.view<T>(value, index, expected, alignment);
  }
  // The data of input `index`, or null if it is absent.
  // The data of a list of `count` values. Does without the shape, which takes longer to read than
  // all else: the host has checked the type, and the bytes say how many there are.
  template <typename T>
  const T* list(size_t index, int64_t count, size_t alignment = alignof(T)) const {
    const Value* value = fetch(index);
    if (!value) refuse_input(index, " is missing");
    const void* data = node_.bytes(value, static_cast<size_t>(count) * sizeof(T));
    const bool aligned = reinterpret_cast<uintptr_t>(data) % alignment == 0;
    return data && aligned ? static_cast<const T*>(data) : input<T>(index, {count}, alignment).data;
  }
  template <typename T>
  const T* optional(size_t index, const Shape& expected) const {
    const Value* value = fetch(index);
    return value ? node_.view<T>(value, index, expected).data : nullptr;
  }
  // Whether two inputs are one tensor.
  bool same(size_t a, size_t b) const { return fetch(a) == fetch(b); }
  bool has(size_t index) const { return fetch(index) != nullptr; }

  template <typename T>
  T* output(size_t index, const Shape& shape) const {
    return static_cast<T*>(allocate(index, shape));
  }

  [[noreturn]] void refuse(const std::string& text) const { node_.refuse(text); }
  [[noreturn]] void refuse_input(size_t index, const std::string& text) const;
  // Refuses an optional input that would go unused.
  void require_absent(size_t index, const char* why) const {
    if (has(index)) refuse_input(index, std::string(" is given ") + why);
  }
  // Refuses unless input `index` with `found` columns has `used` ones from `offset` on.
  void require_columns(size_t index, int64_t found, int64_t offset, int64_t used) const;
  // Refuses unless all values are at least 0 and below `limit`.
  void require_below(size_t index, const Tensor<int64_t>& values, int64_t limit) const;

  // The threads of the session. Valid as long as this object.
  Parallel parallel() const {
    return node_.threads() > 0 ? pool_of(node_.threads()) : Parallel{run_by_host, this, 0};
  }

 private:
  const Value* fetch(size_t index) const {
    const Value* value = nullptr;
    node_.api()(kContextGetInput, context_, index, &value);
    return value;
  }
  void* allocate(size_t index, const Shape& shape) const;
  static void run_by_host(const Parallel& self, size_t total, void (*body)(void*, size_t),
                          void* arg);

  const Node& node_;
  KernelContext* context_;
};

// An input whose shape the attributes tell. A constant one is checked once, when the kernel is
// made, and read where it lies ever after.
template <typename T>
class Fixed {
 public:
  Fixed(const Creation& creation, size_t index, const Shape& shape, size_t alignment = alignof(T))
      : index_(index), shape_(shape), alignment_(alignment) {
    if (const Value* value = creation.constant(index)) {
      constant_ = creation.view<T>(value, index, shape, alignment).data;
    }
  }
  const T* get(const Run& run) const {
    return constant_ ? constant_ : run.input<T>(index_, shape_, alignment_).data;
  }
  const T* get_optional(const Run& run) const {
    return constant_ ? constant_ : run.optional<T>(index_, shape_);
  }

 private:
  size_t index_;
  Shape shape_;
  size_t alignment_;
  const T* constant_ = nullptr;
};

}  // namespace qd::ort
