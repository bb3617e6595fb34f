// Loops on the shared threads: is every index run exactly once, whatever the threads do meanwhile?
// Exits with 1 if not. Built with -fsanitize=thread it also finds races.
#define QD_ISA portable
#include "kernels/pool.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

#include "kernels/parallel.h"

namespace {

std::atomic<int> failures{0};

void expect(bool held, const char* what, int threads, int64_t total) {
  if (held) return;
  std::printf("%s, %d threads, %lld pieces\n", what, threads, static_cast<long long>(total));
  ++failures;
}

// Plain counters: two threads that run one index are a race, which the sanitizer sees.
void each_index_once(int threads, size_t total) {
  std::vector<int> runs(total);
  auto body = [&](size_t index) { ++runs[index]; };
  qd::portable::run_parallel(qd::pool_of(threads), total, body);
  bool once = true;
  for (int count : runs) once &= count == 1;
  expect(once, "an index was not run once", threads, static_cast<int64_t>(total));
}

void each_part_once(int threads, int64_t total, int64_t count) {
  std::vector<int> runs(static_cast<size_t>(total));
  qd::portable::over_parts(qd::pool_of(threads), total, count, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) ++runs[static_cast<size_t>(i)];
  });
  bool once = true;
  for (int each : runs) once &= each == 1;
  expect(once, "a part was not run once", threads, total);
}

void loops(int threads, int rounds) {
  for (int round = 0; round < rounds; ++round) {
    for (size_t total : {0, 1, 2, 3, 7, 64, 1000}) each_index_once(threads, total);
    for (int64_t total : {1, 2, 5, 63, 64, 65, 1000})
      for (int64_t count : {1, 3, 40}) each_part_once(threads, total, count);
  }
}

}  // namespace

int main() {
  for (int threads : {1, 2, 3, 8, 16}) loops(threads, 20);
  // Threads that have fallen asleep come back.
  for (int i = 0; i < 20; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    loops(4, 1);
  }
  // Callers at once, with as many threads and with others.
  std::vector<std::thread> callers;
  for (int i = 0; i < 6; ++i) callers.emplace_back([i] { loops(2 + i % 3, 20); });
  for (std::thread& caller : callers) caller.join();
  std::printf("%d failures\n", failures.load());
  return failures > 0;
}
