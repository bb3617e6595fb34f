// Parts without a pool: threads that start at once and take until nothing is left. Is every index
// handed out exactly once? Exits with 1 if not. Built with -fsanitize=thread it also finds races.
#define QD_ISA portable
#include <atomic>
#include <cstdio>
#include <thread>
#include <vector>

#include "kernels/parallel.h"

namespace {

// Whether it was; the counters are plain, so that the sanitizer sees an index that is taken twice.
bool each_index_once(int threads, int64_t total, int64_t count, bool shared) {
  qd::portable::Parts parts(total, threads, shared);
  std::vector<int> taken(static_cast<size_t>(total));
  std::atomic<int> waiting{threads};
  std::atomic<bool> sound{true};
  auto work = [&](int mine) {
    --waiting;
    while (waiting.load() > 0) std::this_thread::yield();
    int64_t first, last;
    while (parts.take(mine, count, first, last)) {
      if (first < 0 || last > total || last <= first || last - first > count) {
        sound = false;
        return;
      }
      for (int64_t i = first; i < last; ++i) ++taken[static_cast<size_t>(i)];
    }
  };
  std::vector<std::thread> workers;
  for (int mine = 0; mine < threads; ++mine) workers.emplace_back(work, mine);
  for (std::thread& worker : workers) worker.join();
  for (int each : taken) sound = sound && each == 1;
  return sound;
}

}  // namespace

int main() {
  int failures = 0;
  for (int threads : {8, 12, 16}) {
    for (int64_t total : {0, 1, 2, 7, 8, 15, 16, 17, 63, 64, 65, 1000, 4099}) {
      for (int64_t count : {1, 3, 40}) {
        for (bool shared : {false, true}) {
          if (each_index_once(threads, total, count, shared)) continue;
          std::printf("not each once: %d threads, total %lld, pieces of %lld, shared %d\n", threads,
                      static_cast<long long>(total), static_cast<long long>(count), shared);
          ++failures;
        }
      }
    }
  }
  std::printf("%d failures\n", failures);
  return failures > 0;
}
