// What the library offers besides the ONNX Runtime ops: facts about it, the row move of a commit,
// and every kernel by itself, for tests and for programs without ONNX Runtime.
//
// The functions never throw. Those that return a status give one of Status; they check what can be
// checked without knowing the size of the caller's buffers.
#pragma once

#include "exported.h"
#include "kernels/kernels.h"

namespace qd {

enum Status : int {
  kOk = 0,
  kNoSuchIsa = -1,    // the name is unknown, not compiled in, or cannot run on this machine
  kBadArgument = -2,  // a null pointer, an unknown format, a negative size, an index out of range
  kNoMemory = -3,
};

}  // namespace qd

// Changes whenever a signature or a struct of this file does. Now 3.
QD_EXPORT int qd_abi_version();

// The instruction set in use, or null where QUICKDRAFT_ISA names one that cannot run here.
QD_EXPORT const char* qd_isa();
// Name `index` of those compiled in, best first; null past the end.
QD_EXPORT const char* qd_isa_compiled(int index);
// 1 where that instruction set is compiled in and runs on this machine, else 0.
QD_EXPORT int qd_isa_runnable(const char* name);

// Bytes of the record of 16 outputs of k columns; 0 for an unknown format (WeightFormat) or a k
// that does not suit it.
QD_EXPORT int64_t qd_record_bytes(int32_t format, int64_t k);
// Bytes of one slot of one KV head pair; 0 for an unknown type (KvType) or a head_dim below 1.
QD_EXPORT int64_t qd_kv_head_bytes(int32_t type, int64_t head_dim);

// The one buffer that holds the keys and values of all layers, layer after layer.
struct QdCache {
  uint8_t* data;
  int64_t bytes;  // = capacity * sum of kv_heads * qd_kv_head_bytes(type, head_dim)
  int32_t type;   // KvType
  int64_t capacity;
  int64_t head_dim;
  int64_t layers;
  const int64_t* kv_heads;  // [layers]
};

// Moves slot from[i] to slot to[i] in every layer, for i = 0, 1, ... in order; to[i] <= from[i].
// Nothing is moved unless all arguments are sound.
QD_EXPORT int qd_move_rows(const QdCache* cache, const int64_t* from, const int64_t* to,
                           int64_t count);

// The kernels. isa: a name, or null for the one in use. threads: how many run the pieces, 1 to
// 1024. The structs are those of kernels.h; qd_args_bytes gives their size by the name of the
// function ("linear", ...; "cache" is QdCache), 0 for any other name, so that mirrors can check
// themselves.
QD_EXPORT int64_t qd_args_bytes(const char* name);
QD_EXPORT int qd_linear(const char* isa, const qd::LinearArgs* args, int threads);
QD_EXPORT int qd_head(const char* isa, const qd::HeadArgs* args, int threads);
QD_EXPORT int qd_embed(const char* isa, const qd::EmbedArgs* args, int threads);
QD_EXPORT int qd_norm_rows(const char* isa, const qd::NormRowsArgs* args, int threads);
QD_EXPORT int qd_rope_table(const char* isa, const qd::RopeTableArgs* args, int threads);
QD_EXPORT int qd_kv_write(const char* isa, const qd::KvWriteArgs* args, int threads);
QD_EXPORT int qd_attention(const char* isa, const qd::AttentionArgs* args, int threads);
