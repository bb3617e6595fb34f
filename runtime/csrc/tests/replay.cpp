// Runs recorded kernel calls on a machine without Python: `replay CASES RESULTS ISA THREADS`.
// Without arguments it prints the instruction set in use, then the others that run here.
//
// A case is the struct of capi.h as it lies in memory, with the buffers its pointers lead to. Those
// marked as written go to RESULTS, in order. tests/tiny/replay.py writes and reads both files.
// All numbers are little-endian int64:
//   file   = number of cases, case...
//   case   = 16 characters of the kernel's name, bytes of the struct, number of buffers, struct,
//            buffer...
//   buffer = offset of its pointer in the struct, bytes, 1 if written else 0, content
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "capi/capi.h"

namespace {

// What qd_move_rows takes, in one struct.
struct MoveArgs {
  QdCache cache;
  const int64_t* from;
  const int64_t* to;
  int64_t count;
};

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Bytes = std::unique_ptr<uint8_t, Free>;

// Weights and caches are used from 64-byte boundaries on.
Bytes aligned(int64_t bytes) {
  const size_t size = (static_cast<size_t>(bytes) / 64 + 1) * 64;
  auto* memory = static_cast<uint8_t*>(std::aligned_alloc(64, size));
  if (!memory) throw std::bad_alloc();
  return Bytes(memory);
}

class Input {
 public:
  explicit Input(const char* path) : file_(std::fopen(path, "rb")) {
    if (!file_) throw std::runtime_error(std::string("cannot open ") + path);
  }
  ~Input() { std::fclose(file_); }
  Input(const Input&) = delete;
  Input& operator=(const Input&) = delete;

  void read(void* to, int64_t bytes) {
    if (std::fread(to, 1, static_cast<size_t>(bytes), file_) != static_cast<size_t>(bytes)) {
      throw std::runtime_error("the file of cases ends early");
    }
  }
  int64_t number() {
    int64_t value = 0;
    read(&value, sizeof value);
    return value;
  }

 private:
  std::FILE* file_;
};

int64_t struct_bytes(const std::string& name) {
  return name == "move_rows" ? int64_t{sizeof(MoveArgs)} : qd_args_bytes(name.c_str());
}

int run(const std::string& name, const void* args, const char* isa, int threads) {
  if (name == "linear") return qd_linear(isa, static_cast<const qd::LinearArgs*>(args), threads);
  if (name == "head") return qd_head(isa, static_cast<const qd::HeadArgs*>(args), threads);
  if (name == "embed") return qd_embed(isa, static_cast<const qd::EmbedArgs*>(args), threads);
  if (name == "norm_rows") {
    return qd_norm_rows(isa, static_cast<const qd::NormRowsArgs*>(args), threads);
  }
  if (name == "rope_table") {
    return qd_rope_table(isa, static_cast<const qd::RopeTableArgs*>(args), threads);
  }
  if (name == "kv_write") {
    return qd_kv_write(isa, static_cast<const qd::KvWriteArgs*>(args), threads);
  }
  if (name == "attention") {
    return qd_attention(isa, static_cast<const qd::AttentionArgs*>(args), threads);
  }
  if (name == "move_rows") {
    const auto& move = *static_cast<const MoveArgs*>(args);
    return qd_move_rows(&move.cache, move.from, move.to, move.count);
  }
  throw std::runtime_error("no kernel is called " + name);
}

void replay_case(Input& cases, std::FILE* results, const char* isa, int threads) {
  char name[17] = {};
  cases.read(name, 16);
  const int64_t bytes = cases.number();
  const int64_t buffers = cases.number();
  if (bytes != struct_bytes(name)) {
    throw std::runtime_error(std::string(name) + ": the struct has another size here");
  }
  const Bytes args = aligned(bytes);
  cases.read(args.get(), bytes);
  std::vector<Bytes> memory;
  std::vector<std::pair<const uint8_t*, int64_t>> written;
  for (int64_t i = 0; i < buffers; ++i) {
    const int64_t offset = cases.number();
    const int64_t size = cases.number();
    const bool is_written = cases.number() != 0;
    uint8_t* buffer = memory.emplace_back(aligned(size)).get();
    cases.read(buffer, size);
    std::memcpy(args.get() + offset, &buffer, sizeof buffer);
    if (is_written) written.emplace_back(buffer, size);
  }
  if (const int status = run(name, args.get(), isa, threads)) {
    throw std::runtime_error(std::string(name) + " returned " + std::to_string(status));
  }
  for (const auto& [buffer, size] : written) {
    if (std::fwrite(buffer, 1, static_cast<size_t>(size), results) != static_cast<size_t>(size)) {
      throw std::runtime_error("cannot write the results");
    }
  }
}

void replay(const char* from, const char* to, const char* isa, int threads) {
  Input cases(from);
  std::FILE* results = std::fopen(to, "wb");
  if (!results) throw std::runtime_error(std::string("cannot write ") + to);
  for (int64_t left = cases.number(); left > 0; --left) replay_case(cases, results, isa, threads);
  if (std::fclose(results) != 0) throw std::runtime_error("cannot write the results");
}

int print_instruction_sets() {
  const char* in_use = qd_isa();
  std::printf("%s", in_use ? in_use : "none");
  for (int i = 0; const char* name = qd_isa_compiled(i); ++i) {
    if (qd_isa_runnable(name)) std::printf(" %s", name);
  }
  std::printf("\n");
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count == 1) return print_instruction_sets();
  if (count != 5) {
    std::fprintf(stderr, "usage: %s [CASES RESULTS ISA THREADS]\n", arguments[0]);
    return 2;
  }
  try {
    replay(arguments[1], arguments[2], arguments[3], std::atoi(arguments[4]));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "replay: %s\n", error.what());
    return 1;
  }
  return 0;
}
