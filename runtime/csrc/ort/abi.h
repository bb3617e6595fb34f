// The part of ONNX Runtime's C interface that the ops need, in our own declarations: the packages
// that carry the runtime come without headers. Slots are positions in the host's function table,
// which only ever grows; each was checked against released versions. 64-bit systems only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace qd::ort {

// The oldest host we accept, as the NN of its version 1.NN: the first whose shape inference
// survives optional inputs. No function newer than this is declared.
constexpr uint32_t kOldestHost = 24;
// What the ops call themselves: the first version with all callbacks below.
constexpr uint32_t kOpVersion = 18;

struct Status;
struct SessionOptions;
struct Domain;
struct KernelInfo;
struct KernelContext;
struct InferenceContext;
struct Attribute;
struct Value;
struct TensorInfo;

enum class StatusCode : int { kOk = 0, kFail = 1, kInvalidArgument = 2 };
enum class AttributeKind : int { kInt = 1, kFloat = 3, kString = 5 };
enum class Element : int { kAny = 0, kFloat = 1, kUint8 = 2, kInt32 = 6, kInt64 = 7 };
enum class Presence : int { kRequired = 0, kOptional = 1 };

using AnyFunction = void (*)();
using FunctionTable = const AnyFunction*;

struct ApiBase {
  FunctionTable (*get_api)(uint32_t version);  // null, and a line on stderr, if newer
  const char* (*version_text)();
};

// A function of the table: where it is, since which version, and its type.
template <size_t kSlot, uint32_t kSince, typename Signature>
struct Entry {
  static_assert(kSince <= kOldestHost, "the oldest host we accept lacks this function");
};

inline constexpr Entry<0, 1, Status*(StatusCode, const char* text)> kCreateStatus{};
inline constexpr Entry<1, 1, StatusCode(const Status*)> kGetErrorCode{};
inline constexpr Entry<2, 1, const char*(const Status*)> kGetErrorMessage{};
inline constexpr Entry<93, 1, void(Status*)> kReleaseStatus{};
inline constexpr Entry<254, 15, const char*()> kGetBuildInfoString{};

inline constexpr Entry<26, 1, Status*(const char* name, Domain**)> kCreateCustomOpDomain{};
inline constexpr Entry<27, 1, Status*(Domain*, const struct CustomOp*)> kCustomOpDomainAdd{};
inline constexpr Entry<28, 1, Status*(SessionOptions*, Domain*)> kAddCustomOpDomain{};
using Options = const SessionOptions*;
inline constexpr Entry<237, 14, Status*(Options, const char* key, int* found)> kHasConfigEntry{};
inline constexpr Entry<238, 14, Status*(Options, const char* key, char* value, size_t* bytes)>
    kGetConfigEntry{};

using Info = const KernelInfo*;
inline constexpr Entry<85, 1, Status*(Info, const char*, float*)> kGetAttributeFloat{};
inline constexpr Entry<86, 1, Status*(Info, const char*, int64_t*)> kGetAttributeInt{};
inline constexpr Entry<87, 1, Status*(Info, const char*, char*, size_t*)> kGetAttributeString{};
inline constexpr Entry<162, 8, Status*(Info, const char*, float*, size_t*)> kGetAttributeFloats{};
inline constexpr Entry<163, 8, Status*(Info, const char*, int64_t*, size_t*)> kGetAttributeInts{};
inline constexpr Entry<230, 14, Status*(Info, size_t*)> kInfoGetInputCount{};
inline constexpr Entry<244, 15, Status*(Info, char*, size_t*)> kInfoGetNodeName{};
inline constexpr Entry<249, 15, Status*(Info, size_t index, int* is_constant, const Value**)>
    kInfoGetConstantInput{};

inline constexpr Entry<90, 1, Status*(const KernelContext*, size_t index, const Value**)>
    kContextGetInput{};
inline constexpr Entry<
    91, 1, Status*(KernelContext*, size_t index, const int64_t* dims, size_t rank, Value**)>
    kContextGetOutput{};
// batches 0: one task per index, handed out as threads become free.
inline constexpr Entry<274, 17,
                       Status*(const KernelContext*, void (*)(void*, size_t), size_t total,
                               size_t batches, void*)>
    kContextParallelFor{};

inline constexpr Entry<51, 1, Status*(Value*, void**)> kGetTensorMutableData{};
inline constexpr Entry<318, 23, Status*(const Value*, size_t*)> kGetTensorBytes{};
inline constexpr Entry<65, 1, Status*(const Value*, TensorInfo**)> kGetTensorTypeAndShape{};
inline constexpr Entry<57, 1, Status*(TensorInfo**)> kCreateTensorInfo{};
inline constexpr Entry<58, 1, Status*(TensorInfo*, Element)> kSetElementType{};
inline constexpr Entry<59, 1, Status*(TensorInfo*, const int64_t*, size_t)> kSetDimensions{};
inline constexpr Entry<60, 1, Status*(const TensorInfo*, Element*)> kGetElementType{};
inline constexpr Entry<61, 1, Status*(const TensorInfo*, size_t*)> kGetRank{};
inline constexpr Entry<62, 1, Status*(const TensorInfo*, int64_t*, size_t)> kGetDimensions{};
inline constexpr Entry<63, 1, Status*(const TensorInfo*, const char**, size_t)> kGetSymbols{};
inline constexpr Entry<271, 17, Status*(TensorInfo*, const char**, size_t)> kSetSymbols{};
inline constexpr Entry<99, 1, void(TensorInfo*)> kReleaseTensorInfo{};

// The tensor info of an input belongs to the context. An output's needs a symbol per dimension.
inline constexpr Entry<267, 17, Status*(const InferenceContext*, size_t*)> kInferGetInputCount{};
inline constexpr Entry<268, 17, Status*(const InferenceContext*, size_t, TensorInfo**)>
    kInferGetInput{};
inline constexpr Entry<269, 17, Status*(const InferenceContext*, const char*, const Attribute**)>
    kInferGetAttribute{};
inline constexpr Entry<270, 17, Status*(const InferenceContext*, size_t, const TensorInfo*)>
    kInferSetOutput{};
inline constexpr Entry<272, 17, Status*(const Attribute*, AttributeKind, void*, size_t, size_t*)>
    kReadAttribute{};

// A failure that the host reported. Whoever catches it owns the status.
struct HostError {
  Status* status;
};

class Api {
 public:
  explicit Api(FunctionTable table) : table_(table) {}

  // Calls a function of the table.
  template <size_t kSlot, uint32_t kSince, typename R, typename... A>
  R call(Entry<kSlot, kSince, R(A...)>, std::enable_if_t<true, A>... args) const {
    return reinterpret_cast<R (*)(A...)>(table_[kSlot])(args...);
  }

  // Calls one that returns a status; throws HostError unless it succeeded.
  template <size_t kSlot, uint32_t kSince, typename... A>
  void operator()(Entry<kSlot, kSince, Status*(A...)> entry,
                  std::enable_if_t<true, A>... args) const {
    if (Status* status = call(entry, args...)) throw HostError{status};
  }

  // Calls one whose failure has a meaning of its own; whether it succeeded.
  template <size_t kSlot, uint32_t kSince, typename... A>
  bool succeeds(Entry<kSlot, kSince, Status*(A...)> entry,
                std::enable_if_t<true, A>... args) const {
    Status* status = call(entry, args...);
    if (status) call(kReleaseStatus, status);
    return !status;
  }

 private:
  FunctionTable table_;
};

// An op as the host sees it. Callbacks that stay null: the old forms without errors, variadic
// operands, versions of the op set, buffers that may be shared.
struct CustomOp {
  uint32_t version = kOpVersion;
  AnyFunction create_without_status = nullptr;
  const char* (*name)(const CustomOp*);
  const char* (*provider)(const CustomOp*);
  Element (*input_type)(const CustomOp*, size_t);
  size_t (*input_count)(const CustomOp*);
  Element (*output_type)(const CustomOp*, size_t);
  size_t (*output_count)(const CustomOp*);
  AnyFunction compute_without_status = nullptr;
  void (*destroy)(void* kernel);
  Presence (*input_presence)(const CustomOp*, size_t);
  Presence (*output_presence)(const CustomOp*, size_t);
  int (*input_memory)(const CustomOp*, size_t);
  AnyFunction variadic[4] = {};
  Status* (*create)(const CustomOp*, FunctionTable, const KernelInfo*, void** kernel);
  Status* (*compute)(void* kernel, KernelContext*);
  Status* (*infer)(const CustomOp*, InferenceContext*);
  AnyFunction versions[2] = {};
  AnyFunction may_share[2] = {};
  // Pairs of input and output that are one buffer; the arrays are handed back to be freed.
  size_t (*alias_map)(int** inputs, int** outputs) = nullptr;
  void (*release_alias_map)(int* inputs, int* outputs) = nullptr;
};
static_assert(sizeof(void*) == 8 && sizeof(CustomOp) == 26 * sizeof(void*),
              "26 members of a known size are what the host expects");
static_assert(std::is_standard_layout_v<CustomOp>);

}  // namespace qd::ort
