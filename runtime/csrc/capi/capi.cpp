#include "capi/capi.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <new>
#include <thread>
#include <type_traits>
#include <vector>

#include "checked.h"
#include "kernels/pool.h"
#include "tree_rows.h"

namespace qd {
namespace {

static_assert(std::is_standard_layout_v<LinearArgs> && std::is_standard_layout_v<HeadArgs> &&
                  std::is_standard_layout_v<EmbedArgs> && std::is_standard_layout_v<NormRowsArgs> &&
                  std::is_standard_layout_v<RopeTableArgs> &&
                  std::is_standard_layout_v<KvWriteArgs> &&
                  std::is_standard_layout_v<AttentionArgs> && sizeof(bool) == 1,
              "the structs are mirrored by other languages");

template <typename Args>
int call(void (*Kernels::*kernel)(const Args&, const Parallel&), const char* isa, const Args& args,
         int threads) {
  if (threads < 1 || threads > kMostThreads) return kBadArgument;
  const Kernels* table = isa ? kernels_named(isa) : kernels();
  if (!table) return kNoSuchIsa;
  try {
    (table->*kernel)(args, pool_of(threads));
  } catch (const std::bad_alloc&) {
    return kNoMemory;
  }
  return kOk;
}

bool in_range(const int64_t* values, int64_t count, int64_t limit) {
  return std::all_of(values, values + count, [=](int64_t v) { return v >= 0 && v < limit; });
}

bool known(WeightFormat format) {
  return static_cast<int32_t>(format) >= 0 && static_cast<int32_t>(format) < kWeightFormats;
}

bool known(KvType type) { return type >= KvType::kF32 && type <= KvType::kI8; }

bool sound(const NormArgs& norm) {
  return norm.kind >= NormKind::kNone && norm.kind <= NormKind::kLayer;
}

// All but y, which the head does without.
bool sound(const LinearArgs& a) {
  return a.x && a.weights && a.rows >= 0 && a.n > 0 &&
         qd_record_bytes(static_cast<int32_t>(a.format), a.k) > 0 && sound(a.norm) &&
         a.activation >= Activation::kNone && a.activation <= Activation::kRelu;
}

bool sound(const KvLayer& cache) {
  return cache.base && known(cache.type) && cache.capacity > 0 && cache.capacity % 16 == 0 &&
         cache.kv_heads > 0 && cache.head_dim > 0;
}

bool sound(const KvWriteArgs& a) {
  return a.k && a.v && sound(a.cache) && a.rows >= 0 && a.past >= 0 && a.past <= a.cache.capacity &&
         a.rows <= a.cache.capacity - a.past &&
         (!a.rope || (a.pairs >= 1 && a.pairs <= a.cache.head_dim / 2));
}

// Where its rows stand, and what they see and write.
bool sound_order(const AttentionArgs& a) {
  if (a.staged < 0 || a.staged > a.kv.past) return false;
  if (a.seen == 0) return sound(a.kv) && a.positions && first_unsound_row(a) == a.kv.rows;
  const bool written = a.kv.k && sound(a.kv) && a.kv.past == 0 && a.kv.rows == a.seen;
  const bool read = !a.kv.k && !a.kv.v && !a.kv.rope && sound(a.kv.cache) && a.kv.rows >= 0;
  return (written || read) && !a.ancestors && a.window == 0 && a.seen > 0 &&
         a.seen <= a.kv.cache.capacity;
}

bool sound(const QdCache& c) {
  if (!c.data || c.layers < 1 || !c.kv_heads || c.capacity % 16 != 0) return false;
  const int64_t head_bytes = qd_kv_head_bytes(c.type, c.head_dim);
  int64_t rest = c.bytes;
  for (int64_t i = 0; i < c.layers; ++i) {
    const auto layer = product(c.kv_heads[i], c.capacity, head_bytes);
    if (!layer || *layer == 0 || *layer > rest) return false;
    rest -= *layer;
  }
  return rest == 0;
}

}  // namespace
}  // namespace qd

using qd::call;
using qd::kBadArgument;
using qd::Kernels;
using qd::sound;

int qd_abi_version() { return 3; }

const char* qd_isa() {
  const Kernels* table = qd::kernels();
  return table ? table->isa : nullptr;
}

const char* qd_isa_compiled(int index) { return index < 0 ? nullptr : qd::isa_name(index); }

int qd_isa_runnable(const char* name) { return name && qd::kernels_named(name) ? 1 : 0; }

int64_t qd_record_bytes(int32_t format, int64_t k) {
  const auto named = static_cast<qd::WeightFormat>(format);
  // Beyond 2^40 columns a record of any format could exceed int64.
  if (!qd::known(named) || k < 1 || k > (int64_t{1} << 40)) return 0;
  return static_cast<int64_t>(qd::record_bytes(named, k));
}

int64_t qd_kv_head_bytes(int32_t type, int64_t head_dim) {
  const auto named = static_cast<qd::KvType>(type);
  if (!qd::known(named) || head_dim < 1 || head_dim > (int64_t{1} << 40)) return 0;
  return static_cast<int64_t>(qd::kv_head_bytes(named, head_dim));
}

int qd_move_rows(const QdCache* cache, const int64_t* from, const int64_t* to, int64_t count) {
  if (!cache || !sound(*cache) || count < 0) return kBadArgument;
  if (count == 0) return qd::kOk;
  if (!from || !to || !qd::in_range(from, count, cache->capacity) ||
      !qd::in_range(to, count, cache->capacity)) {
    return kBadArgument;
  }
  for (int64_t i = 0; i < count; ++i) {
    if (to[i] > from[i]) return kBadArgument;
  }
  qd::KvLayer layer{static_cast<qd::KvType>(cache->type), cache->capacity, 0, cache->head_dim,
                    cache->data};
  for (int64_t i = 0; i < cache->layers; ++i) {
    layer.kv_heads = cache->kv_heads[i];
    qd::move_rows(layer, from, to, count);
    layer.base += layer.kv_heads * layer.capacity * qd_kv_head_bytes(cache->type, cache->head_dim);
  }
  return qd::kOk;
}

int64_t qd_args_bytes(const char* name) {
  const struct {
    const char* name;
    size_t bytes;
  } sizes[] = {{"linear", sizeof(qd::LinearArgs)},        {"head", sizeof(qd::HeadArgs)},
               {"embed", sizeof(qd::EmbedArgs)},          {"norm_rows", sizeof(qd::NormRowsArgs)},
               {"rope_table", sizeof(qd::RopeTableArgs)}, {"kv_write", sizeof(qd::KvWriteArgs)},
               {"attention", sizeof(qd::AttentionArgs)},  {"cache", sizeof(QdCache)}};
  for (const auto& known : sizes) {
    if (name && std::strcmp(name, known.name) == 0) return static_cast<int64_t>(known.bytes);
  }
  return 0;
}

int qd_linear(const char* isa, const qd::LinearArgs* args, int threads) {
  if (!args || !sound(*args) || !args->y) return kBadArgument;
  return call(&Kernels::linear, isa, *args, threads);
}

int qd_head(const char* isa, const qd::HeadArgs* args, int threads) {
  if (!args || !sound(args->linear) || args->m < 0 || args->top < 1 || args->top > args->linear.n ||
      !args->values || !args->ids || !args->log_sum || !args->rows ||
      !qd::in_range(args->rows, args->m, args->linear.rows)) {
    return kBadArgument;
  }
  return call(&Kernels::head, isa, *args, threads);
}

int qd_embed(const char* isa, const qd::EmbedArgs* args, int threads) {
  if (!args || !args->weights || !args->ids || !args->y || args->rows < 0 || args->n < 1 ||
      qd_record_bytes(static_cast<int32_t>(args->format), args->k) == 0 ||
      !qd::in_range(args->ids, args->rows, args->n)) {
    return kBadArgument;
  }
  return call(&Kernels::embed, isa, *args, threads);
}

int qd_norm_rows(const char* isa, const qd::NormRowsArgs* args, int threads) {
  if (!args || !args->x || !args->y || args->rows < 0 || args->heads < 1 || args->width < 1 ||
      args->offset < 0 || !sound(args->norm)) {
    return kBadArgument;
  }
  const auto used = qd::product(args->heads, args->width);
  if (!used || args->stride < args->offset || args->stride - args->offset < *used) {
    return kBadArgument;
  }
  return call(&Kernels::norm_rows, isa, *args, threads);
}

int qd_rope_table(const char* isa, const qd::RopeTableArgs* args, int threads) {
  if (!args || !args->positions || !args->frequencies || !args->table || args->rows < 0 ||
      args->pairs < 1) {
    return kBadArgument;
  }
  return call(&Kernels::rope_table, isa, *args, threads);
}

int qd_kv_write(const char* isa, const qd::KvWriteArgs* args, int threads) {
  if (!args || !sound(*args)) return kBadArgument;
  return call(&Kernels::kv_write, isa, *args, threads);
}

int qd_attention(const char* isa, const qd::AttentionArgs* args, int threads) {
  if (!args || !args->q || !args->y || args->heads < 1 || args->window < 0 || args->reach < 0 ||
      !qd::sound_order(*args) || args->heads % args->kv.cache.kv_heads != 0) {
    return kBadArgument;
  }
  return call(&Kernels::attention, isa, *args, threads);
}
