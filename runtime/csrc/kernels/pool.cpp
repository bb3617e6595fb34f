// A loop of a step takes 5 to 100 microseconds and a step has hundreds, so handing one over must
// cost little more than moving a cache line there and back: one word has what is left, whoever
// takes an index moves it on, and the caller waits for indices that were taken, never for threads
// that did not come. Threads look for work for a millisecond after the last loop, then sleep.

#include "kernels/pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if defined(_M_X64) || defined(__x86_64__)
#include <immintrin.h>
#endif

namespace qd {
namespace {

inline void relax() {
#if defined(_M_X64) || defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__) && !defined(_MSC_VER)
  asm volatile("yield");
#endif
}

class Pool {
 public:
  explicit Pool(int threads) : threads_(threads) {
    try {
      for (int i = 1; i < threads; ++i) std::thread([this] { work(); }).detach();
    } catch (const std::exception&) {  // no more threads: fewer do the work
    }
  }

  int threads() const { return threads_; }
  bool take() { return !taken_.exchange(true, std::memory_order_acquire); }
  void give_back() { taken_.store(false, std::memory_order_release); }

  // For the one that took it.
  void run(size_t total, void (*body)(void*, size_t), void* arg) {
    body_ = body;
    arg_ = arg;
    finished_.store(0, std::memory_order_relaxed);
    left_.store(pack(1, total), std::memory_order_release);
    // A thread that falls asleep at this moment is missed, and its share done here.
    if (asleep_.load(std::memory_order_relaxed) > 0) wake();
    body(arg, 0);
    size_t mine = 1;
    for (size_t index; claim(index); ++mine) body(arg, index);
    for (int tries = 0; finished_.load(std::memory_order_acquire) + mine < total; ++tries) {
      if (tries < kTriesAwake)
        relax();
      else
        std::this_thread::yield();  // the thread we wait for may need this processor
    }
  }

 private:
  static constexpr int kTriesAwake = 2000;
  static constexpr std::chrono::microseconds kAwake{1000};

  // The next index in the upper half, their number in the lower one.
  static uint64_t pack(uint64_t next, uint64_t total) { return next << 32 | total; }
  static bool any(uint64_t left) { return left >> 32 < (left & 0xffffffffu); }

  // A word that was read long ago and is there again means the same: taking it is right.
  bool claim(size_t& index) {
    uint64_t left = left_.load(std::memory_order_acquire);
    while (any(left)) {
      index = static_cast<size_t>(left >> 32);
      if (left_.compare_exchange_weak(left, left + (uint64_t{1} << 32), std::memory_order_acq_rel))
        return true;
    }
    return false;
  }

  void work() {
    for (;;) {
      await();
      for (size_t index; claim(index);) {
        body_(arg_, index);
        finished_.fetch_add(1, std::memory_order_release);
      }
    }
  }

  void await() {
    constexpr int kTriesPerLook = 256;  // at the clock
    const auto start = std::chrono::steady_clock::now();
    do {
      for (int i = 0; i < kTriesPerLook; ++i) {
        if (any(left_.load(std::memory_order_relaxed))) return;
        relax();
      }
    } while (std::chrono::steady_clock::now() - start < kAwake);
    std::unique_lock<std::mutex> lock(mutex_);
    asleep_.fetch_add(1);
    awake_.wait(lock, [this] { return any(left_.load(std::memory_order_relaxed)); });
    asleep_.fetch_sub(1);
  }

  void wake() {
    const std::lock_guard<std::mutex> lock(mutex_);
    awake_.notify_all();
  }

  // What a loop is begun with and taken from: one cache line. (128: processors fetch two at once.)
  alignas(128) std::atomic<uint64_t> left_{0};
  void (*body_)(void*, size_t) = nullptr;
  void* arg_ = nullptr;
  alignas(128) std::atomic<size_t> finished_{0};
  alignas(128) std::atomic<bool> taken_{false};
  std::atomic<int> asleep_{0};
  int threads_;
  std::mutex mutex_;
  std::condition_variable awake_;
};

// One that nobody uses, taken. Pools live until the process ends, as their threads do.
Pool* take_pool(int threads) {
  static std::mutex mutex;
  static auto* pools = new std::vector<std::unique_ptr<Pool>>;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const auto& pool : *pools)
    if (pool->threads() == threads && pool->take()) return pool.get();
  pools->push_back(std::make_unique<Pool>(threads));
  pools->back()->take();
  return pools->back().get();
}

void run_on_pool(const Parallel& self, size_t total, void (*body)(void*, size_t), void* arg) {
  constexpr size_t kMostAtOnce = 0xffffffffu;
  if (self.threads == 1 || total == 1 || total > kMostAtOnce) {
    for (size_t i = 0; i < total; ++i) body(arg, i);
    return;
  }
  if (total == 0) return;
  thread_local Pool* last = nullptr;
  if (!last || last->threads() != self.threads || !last->take()) last = take_pool(self.threads);
  last->run(total, body, arg);
  last->give_back();
}

}  // namespace

Parallel pool_of(int threads) { return {run_on_pool, nullptr, threads}; }

}  // namespace qd
