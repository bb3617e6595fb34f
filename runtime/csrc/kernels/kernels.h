// The kernels of the hot path: one table of functions per instruction set, all with the same bits.
//
// The width rule: an output row depends on its own inputs only. Integer sums are exact, float sums
// run in one order fixed by logical indices (groups of columns, positions), written with fused
// multiply-adds. So a row's bits do not depend on the number of rows, on chunking, on the shape of
// a tree, on the number of threads, nor on the instruction set.
//
// Kernels allocate nothing inside parallel bodies, throw only std::bad_alloc and trust their
// arguments: whoever calls them (ort/, capi/) has checked every shape.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qd {

// How a kernel runs independent pieces of work: body(arg, i) for each i < total, in any order,
// maybe on several threads; returns when all have run. Bodies do not throw.
struct Parallel {
  void (*run)(const Parallel& self, size_t total, void (*body)(void* arg, size_t index), void* arg);
  const void* context;
  int threads;  // that run bodies at once; 0: unknown
};

// Weight formats. A matrix [outputs, k] is stored in blocks of 16 outputs (rows padded with zeros),
// a record per block, records 64-byte multiples. docs/weight-layout.md has the bytes. value = scale
// * (code - zero) [+ minimum]; scale and minimum are float16 per group, or for the *k formats a
// float16 per 256 columns times an integer per group.
enum class WeightFormat : int32_t {
  kF32 = 0,  // dense float32
  kF16 = 1,  // dense float16
  kW4 = 2,   // 4 bits, zero 8, groups of 32, scale
  kW4M = 3,  // 4 bits, zero 0, groups of 32, scale and minimum
  kW4K = 4,  // 4 bits, zero 0, groups of 32, two-level scale and minimum (GGUF Q4_K)
  kW6K = 5,  // 6 bits, zero 32, groups of 16, two-level scale (GGUF Q6_K)
  kW8 = 6,   // 8 bits, zero 128, groups of 32, scale
  kW8M = 7,  // 8 bits, zero 0, groups of 32, scale and minimum (GGUF Q5_1)
  kW8K = 8,  // 8 bits, zero 0, groups of 32, two-level scale and minimum (GGUF Q5_K)
};
constexpr int kWeightFormats = 9;
constexpr int64_t kBlock = 16;  // outputs per block
constexpr int64_t kGroup = 32;  // columns that share an activation scale

enum class Activation : int32_t { kNone = 0, kSilu, kGelu, kGeluTanh, kRelu };
enum class NormKind : int32_t { kNone = 0, kRms, kLayer };
enum class KvType : int32_t { kF32 = 0, kF16 = 1, kI8 = 2 };

// A norm over `width` values. weight, bias: [width] or null (all ones, none).
struct NormArgs {
  NormKind kind = NormKind::kNone;
  float eps = 0;
  const float* weight = nullptr;
  const float* bias = nullptr;
};

// y[r, o] = act(norm(x[r]) . w[o] + bias[o]) + residual[r, o]. Quantised formats round norm(x) to
// int8 per row and group of 32, with a second term for coarse groups (rounded.h). gated: blocks
// alternate gate, up; y = act(gate) * up, and n counts the outputs y (a multiple of 16 unless it is
// the last block; weights hold 2 * ceil(n / 16) blocks; bias is [gate n, up n]).
struct LinearArgs {
  const float* x = nullptr;  // [rows, k]
  int64_t rows = 0;
  int64_t k = 0;
  NormArgs norm;
  WeightFormat format = WeightFormat::kF32;
  const uint8_t* weights = nullptr;
  int64_t n = 0;
  const float* bias = nullptr;
  const float* residual = nullptr;  // [rows, n] or null; may be y itself
  Activation activation = Activation::kNone;
  bool gated = false;
  float* y = nullptr;  // [rows, n]
};

// The output head: linear over chosen rows, then the `top` largest logits of each row, largest
// first, equal ones by id. logits are softcap * tanh(l / softcap) where softcap > 0.
struct HeadArgs {
  LinearArgs linear;              // y, residual and activation unused; x: all rows of the step
  const int64_t* rows = nullptr;  // [m] indices into the rows of x
  int64_t m = 0;
  int64_t top = 0;
  float softcap = 0;
  float* values = nullptr;   // [m, top]
  int64_t* ids = nullptr;    // [m, top]
  float* log_sum = nullptr;  // [m]: log of the sum of exp(logits)
  float* logits = nullptr;   // [m, n] or null
};

// Rows of a stored matrix [n, k] as float32 times scale: y[i] = table[ids[i]] * scale.
struct EmbedArgs {
  WeightFormat format = WeightFormat::kF32;
  const uint8_t* weights = nullptr;
  int64_t n = 0;
  int64_t k = 0;
  const int64_t* ids = nullptr;
  int64_t rows = 0;
  float scale = 1;
  float* y = nullptr;  // [rows, k]
};

// y[r, h] = norm(x[r, offset + h * width ...]) for each of `heads` parts, plus residual.
// weight and bias of norm: [width], or with per_head [heads * width].
struct NormRowsArgs {
  const float* x = nullptr;
  int64_t rows = 0;
  int64_t stride = 0;  // columns of x
  int64_t offset = 0;
  int64_t heads = 1;
  int64_t width = 0;
  bool per_head = false;
  NormArgs norm;
  const float* residual = nullptr;  // [rows, heads * width] or null
  float* y = nullptr;               // [rows, heads * width]
};

// table[r] = cos(positions[r] * frequencies) * factor, then sin likewise: [rows, 2, pairs].
struct RopeTableArgs {
  const int64_t* positions = nullptr;
  int64_t rows = 0;
  const float* frequencies = nullptr;
  int64_t pairs = 0;
  float factor = 1;
  float* table = nullptr;
};

// One layer of the KV cache inside the one buffer that holds all layers. capacity: slots, a
// multiple of 16. Keys lie [capacity / 16][kv_heads][head_dim][16] (16 slots side by side), then,
// for int8, their scales float32 [capacity / 16][kv_heads][bands][16]; then values
// [capacity][kv_heads][head_dim], then, for int8, their scales float32 [capacity][kv_heads]. int8:
// value = scale * code, a scale per slot, head and, for keys, band.
struct KvLayer {
  KvType type = KvType::kF32;
  int64_t capacity = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  uint8_t* base = nullptr;
};

// A band of a key: 16 columns of the first half of a head and the 16 in the same places of the
// second, which rotate against the first. The last band may be smaller.
constexpr int64_t kBandColumns = 16;  // of each half
inline int64_t key_bands(int64_t head_dim) {
  return ((head_dim + 1) / 2 + kBandColumns - 1) / kBandColumns;
}

// Rotates k (if rope is not null), then writes k and v of row i to slot past + i.
struct KvWriteArgs {
  const float* k = nullptr;  // row r of KV head h: k[r * k_stride + h * head_dim]
  const float* v = nullptr;
  int64_t k_stride = 0, v_stride = 0;
  int64_t rows = 0;
  int64_t past = 0;
  KvLayer cache;
  const float* rope = nullptr;  // [rows, 2, pairs] or null; halves rotated against each other
  int64_t pairs = 0;            // the first 2 * pairs values of each head are rotated
};

// Writes keys and values, rotates q as k, then attends: row i at logical position positions[i] =
// past + depth sees positions 0 .. positions[i], those below `past` in the slot of the same number,
// the others in slots past + ancestors[i, d] for d = 0 .. depth (the row itself last). ancestors
// null: a chain, row i has depth i. staged > 0: the tree grows, its first rows are in the cache,
// the step's follow them, and `past` above is kv.past - staged; ancestors count all. Sums run over
// logical positions in fixed blocks. window w > 0: only positions above positions[i] - w. softcap c
// > 0: c * tanh(score / c). sinks: [heads], a logit per head that takes part in the softmax and
// adds no value, or null. relative: [heads, 2 * reach + 1], added to the scaled and capped score of
// position p as seen from position i: the value at p - i, kept within +-reach, plus reach; or null.
//
// seen > 0: there is no order. Every row sees positions 0 .. seen - 1, each in the slot of its
// number; window is 0, ancestors null, and row i is at position i. Without k and v nothing is
// written: the cache is a memory that somebody else has filled.
struct AttentionArgs {
  KvWriteArgs kv;            // the rows of the step
  const float* q = nullptr;  // row r of query head h: q[r * q_stride + h * head_dim]
  int64_t q_stride = 0;
  int64_t heads = 0;
  const int64_t* positions = nullptr;  // [rows]; unused where seen > 0
  const int32_t* ancestors = nullptr;  // [rows, depths] or null
  int64_t depths = 0;
  float scale = 1;
  int64_t window = 0;
  float softcap = 0;
  const float* sinks = nullptr;
  const float* relative = nullptr;
  int64_t reach = 0;
  int64_t seen = 0;
  int64_t staged = 0;
  float* y = nullptr;  // [rows, heads * head_dim]

  // Positions below this one lie in the slot of their number.
  int64_t committed() const { return kv.past - staged; }
};

struct Kernels {
  const char* isa;
  void (*linear)(const LinearArgs&, const Parallel&);
  void (*head)(const HeadArgs&, const Parallel&);
  void (*embed)(const EmbedArgs&, const Parallel&);
  void (*norm_rows)(const NormRowsArgs&, const Parallel&);
  void (*rope_table)(const RopeTableArgs&, const Parallel&);
  void (*kv_write)(const KvWriteArgs&, const Parallel&);
  void (*attention)(const AttentionArgs&, const Parallel&);
};

// The table in use: the best this machine has, or the one named by QUICKDRAFT_ISA; null when that
// name is unknown or cannot run here. Chosen once. Names: avx512vnni avxvnni avx2 i8mm dotprod
// portable.
const Kernels* kernels();
// The table of that name, or null if it was not compiled in or this machine cannot run it.
const Kernels* kernels_named(const char* name);
// Name `index` of those compiled in, best first, or null past the end; runnable or not.
const char* isa_name(int index);

// Bytes of one record (16 outputs) of k columns; 0 where k does not suit the format.
size_t record_bytes(WeightFormat format, int64_t k);
// Bytes of one slot of one KV head pair (key and value) in the cache.
size_t kv_head_bytes(KvType type, int64_t head_dim);
// Moves the keys and values of slots `from[i]` to `to[i]`, in order, to[i] <= from[i].
void move_rows(const KvLayer& layer, const int64_t* from, const int64_t* to, int64_t count);

}  // namespace qd
