// Makes an op of ONNX Runtime of a class. The class K has
//   static constexpr char kName[]; static constexpr Formal kInputs[], kOutputs[];
//   explicit K(const Creation&)      reads attributes and constant inputs, throws Invalid
//   void compute(const Run&) const   one run; several may be under way at once
//   static void infer(const Inference&)
// and, if outputs are inputs changed in place, static constexpr Alias kAliases[].
#pragma once

#include <iterator>

#include "ort/inference.h"
#include "ort/node.h"

namespace qd::ort {

struct Alias {
  int input, output;
};

// An op and the host it is registered with: callbacks get no other way to the host's functions.
struct Op : CustomOp {
  Host host{Api(nullptr), 0};
};

template <typename K, typename = void>
constexpr bool kHasAliases = false;
template <typename K>
constexpr bool kHasAliases<K, std::void_t<decltype(K::kAliases)>> = true;

template <typename K>
class Callbacks {
 public:
  static Op op() {
    Op op;
    op.name = [](const CustomOp*) { return K::kName; };
    op.provider = [](const CustomOp*) { return "CPUExecutionProvider"; };
    op.input_count = [](const CustomOp*) { return std::size(K::kInputs); };
    op.output_count = [](const CustomOp*) { return std::size(K::kOutputs); };
    op.input_type = [](const CustomOp*, size_t i) { return K::kInputs[i].type; };
    op.output_type = [](const CustomOp*, size_t i) { return K::kOutputs[i].type; };
    op.input_presence = [](const CustomOp*, size_t i) { return K::kInputs[i].presence; };
    op.output_presence = [](const CustomOp*, size_t i) { return K::kOutputs[i].presence; };
    op.input_memory = [](const CustomOp*, size_t) { return 0; };
    op.create = create;
    op.compute = compute;
    op.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    op.infer = infer;
    if constexpr (kHasAliases<K>) {
      op.alias_map = alias_map;
      op.release_alias_map = [](int* inputs, int* outputs) {
        delete[] inputs;
        delete[] outputs;
      };
    }
    return op;
  }

 private:
  struct Kernel {
    Node node;
    K body;
  };

  static Status* create(const CustomOp* op, FunctionTable, const KernelInfo* info, void** kernel) {
    const Host& host = static_cast<const Op*>(op)->host;
    return guarded(host.api, [&] {
      const Creation creation(host, info, K::kName, K::kInputs, K::kOutputs);
      *kernel = new Kernel{creation, K(creation)};
    });
  }

  static Status* compute(void* kernel, KernelContext* context) {
    const Kernel& self = *static_cast<const Kernel*>(kernel);
    return guarded(self.node.api(), [&] { self.body.compute(Run(self.node, context)); });
  }

  static Status* infer(const CustomOp* op, InferenceContext* context) {
    const Api& api = static_cast<const Op*>(op)->host.api;
    return guarded(api, [&] { K::infer(Inference(api, context, K::kOutputs)); });
  }

  static size_t alias_map(int** inputs, int** outputs) {
    if constexpr (kHasAliases<K>) {
      constexpr size_t kCount = std::size(K::kAliases);
      *inputs = new (std::nothrow) int[kCount];
      *outputs = new (std::nothrow) int[kCount];
      if (!*inputs || !*outputs) return 0;  // the op copies then
      for (size_t i = 0; i < kCount; ++i) {
        (*inputs)[i] = K::kAliases[i].input;
        (*outputs)[i] = K::kAliases[i].output;
      }
      return kCount;
    }
    return 0;
  }
};

}  // namespace qd::ort
