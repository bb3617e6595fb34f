#include "kernels/scratch.h"

#include <cstdlib>
#include <new>

namespace qd {
namespace {

struct Buffer {
  void* memory = nullptr;
  size_t bytes = 0;
  ~Buffer() { release(); }

  void release() {
#if defined(_WIN32)
    _aligned_free(memory);
#else
    std::free(memory);
#endif
    memory = nullptr;
    bytes = 0;
  }

  void grow(size_t wanted) {
    release();
    const size_t rounded = (wanted + wanted / 4 + 4095) / 4096 * 4096;
#if defined(_WIN32)
    memory = _aligned_malloc(rounded, 64);
#else
    memory = std::aligned_alloc(64, rounded);
#endif
    if (!memory) throw std::bad_alloc();
    bytes = rounded;
  }
};

}  // namespace

void* scratch(Scratch use, size_t bytes) {
  thread_local Buffer buffers[static_cast<int>(Scratch::kCount)];
  Buffer& buffer = buffers[static_cast<int>(use)];
  if (buffer.bytes < bytes) buffer.grow(bytes);
  return buffer.memory;
}

}  // namespace qd
