// Where ONNX Runtime enters: RegisterCustomOps, called once per options object.

#include <cstdio>
#include <cstdlib>
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

// Of how many threads of ours the sessions with these options are; without it the host's are used.
constexpr char kThreadsKey[] = "quickdraft.threads";

// The ops as registered with one host, for sessions of as many threads. Hosts keep the addresses,
// so an object of this class lives until the process ends. A process may hold several runtimes,
// each with a table of its own.
struct Registered {
  FunctionTable table;
  int threads;
  Domain* domain = nullptr;
  Op ops[std::size(kOps)];
  Registered* next = nullptr;
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

// What kThreadsKey says; 0 if nothing.
int threads_of(const Api& api, Options options) {
  int found = 0;
  api(kHasConfigEntry, options, kThreadsKey, &found);
  if (!found) return 0;
  char text[16] = {};
  size_t bytes = sizeof text;
  char* end = text;
  const bool read = api.succeeds(kGetConfigEntry, options, kThreadsKey, text, &bytes);
  const long threads = read ? std::strtol(text, &end, 10) : 0;
  if (!read || end == text || *end || threads < 1 || threads > kMostThreads) {
    throw Invalid(std::string("quickdraft: session option ") + kThreadsKey +
                  " must be a number of threads from 1 to " + std::to_string(kMostThreads));
  }
  return static_cast<int>(threads);
}

// The ops for this host and number of threads; made at the first call.
const Registered& registered(FunctionTable table, int threads) {
  static std::mutex mutex;
  static Registered* first = nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const Registered* each = first; each; each = each->next) {
    if (each->table == table && each->threads == threads) return *each;
  }
  const Api api(table);
  auto made = std::make_unique<Registered>();
  made->table = table;
  made->threads = threads;
  api(kCreateCustomOpDomain, kDomain, &made->domain);
  for (size_t i = 0; i < std::size(kOps); ++i) {
    made->ops[i] = kOps[i]();
    made->ops[i].host = {api, threads};
    api(kCustomOpDomainAdd, made->domain, &made->ops[i]);
  }
  made->next = first;
  first = made.release();
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
    if (!works(api)) {
      throw Invalid("quickdraft: this ONNX Runtime does not behave as its version should");
    }
    api(kAddCustomOpDomain, options, registered(table, threads_of(api, options)).domain);
  });
}
