// Where ONNX Runtime enters: RegisterCustomOps, called once per options object.

#include <cstdio>
#include <cstring>
#include <iterator>
#include <memory>
#include <mutex>

#include "exported.h"
#include "ort/ops.h"

namespace qd::ort {
namespace {

constexpr char kDomain[] = "quickdraft";
constexpr Op (*kOps[])() = {qlinear_op,        norm_op,  rope_table_op, tree_attention_op,
                            kv_write_op,       embed_op, head_top_k_op, encode_attention_op,
                            cross_attention_op};

// The ops as registered with one host. Hosts keep the addresses, so an object of this class lives
// until the process ends. A process may hold several runtimes, each with a table of its own.
struct Host {
  FunctionTable table;
  Domain* domain = nullptr;
  Op ops[std::size(kOps)];
  Host* next = nullptr;
};

// NN of the host's version 1.NN; 0 if it is another or no version.
unsigned minor_version(const ApiBase& base) {
  unsigned minor = 0;
  const char* text = base.version_text();
  return text && std::sscanf(text, "1.%4u.", &minor) == 1 ? minor : 0;
}

// Whether the functions are where we expect them: a round trip through each kind of object.
bool works(const Api& api) {
  Status* status = api.call(kCreateStatus, StatusCode::kInvalidArgument, "canary");
  if (!status) return false;
  const bool same_status = api.call(kGetErrorCode, status) == StatusCode::kInvalidArgument &&
                           std::strcmp(api.call(kGetErrorMessage, status), "canary") == 0;
  api.call(kReleaseStatus, status);
  if (!same_status) return false;
  const char* build = api.call(kGetBuildInfoString);
  if (!build || std::strncmp(build, "ORT Build Info", 14) != 0) return false;
  InfoHolder holder(api);
  const int64_t dims[3] = {2, 3, 5};
  int64_t found[3] = {};
  size_t rank = 0;
  Element type = Element::kAny;
  return api.succeeds(kCreateTensorInfo, &holder.info) &&
         api.succeeds(kSetElementType, holder.info, Element::kInt64) &&
         api.succeeds(kSetDimensions, holder.info, dims, 3) &&
         api.succeeds(kGetRank, holder.info, &rank) && rank == 3 &&
         api.succeeds(kGetDimensions, holder.info, found, 3) &&
         std::memcmp(dims, found, sizeof dims) == 0 &&
         api.succeeds(kGetElementType, holder.info, &type) && type == Element::kInt64;
}

// The ops for this host; made at the first call.
const Host& host_for(FunctionTable table) {
  static std::mutex mutex;
  static Host* first = nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const Host* host = first; host; host = host->next) {
    if (host->table == table) return *host;
  }
  const Api api(table);
  if (!works(api)) {
    throw Invalid("quickdraft: this ONNX Runtime does not behave as its version should");
  }
  auto host = std::make_unique<Host>();
  host->table = table;
  api(kCreateCustomOpDomain, kDomain, &host->domain);
  for (size_t i = 0; i < std::size(kOps); ++i) {
    host->ops[i] = kOps[i]();
    host->ops[i].table = table;
    api(kCustomOpDomainAdd, host->domain, &host->ops[i]);
  }
  host->next = first;
  first = host.release();
  return *first;
}

void check_isa() {
  if (kernels()) return;
  std::string runnable;
  for (int i = 0; const char* name = isa_name(i); ++i) {
    if (kernels_named(name)) runnable += std::string(runnable.empty() ? "" : ", ") + name;
  }
  throw Invalid("quickdraft: QUICKDRAFT_ISA names no instruction set that runs here; there are " +
                runnable);
}

}  // namespace
}  // namespace qd::ort

// A status, or null where all is well.
QD_EXPORT qd::ort::Status* RegisterCustomOps(qd::ort::SessionOptions* options,
                                             const qd::ort::ApiBase* base) {
  using namespace qd::ort;
  const unsigned version = minor_version(*base);
  // Every host has version 1, and a status in it: enough to refuse.
  FunctionTable table = base->get_api(version < kOldestHost ? 1 : kOldestHost);
  if (!table) return nullptr;  // no way to say so; loading a model will
  const Api api(table);
  return guarded(api, [&] {
    if (version < kOldestHost) {
      throw Invalid(std::string("quickdraft needs ONNX Runtime 1.") + std::to_string(kOldestHost) +
                    " or later, this is " + base->version_text());
    }
    check_isa();
    api(kAddCustomOpDomain, options, host_for(table).domain);
  });
}
