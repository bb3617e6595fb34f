// Runs a callable over independent pieces of work.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"

namespace qd::QD_ISA {

// body(index) for each index < total, in any order, maybe on several threads.
template <class Body>
inline void run_parallel(const Parallel& parallel, size_t total, Body& body) {
  if (total == 0) return;
  parallel.run(
      parallel, total, [](void* arg, size_t index) { (*static_cast<Body*>(arg))(index); }, &body);
}

// run(task, lane) for each task < tasks; those of one lane, of which there are `lanes`, run one
// after the other. A single lane runs here.
template <class Run>
inline void run_in_lanes(const Parallel& parallel, int64_t lanes, int64_t tasks, Run run) {
  auto body = [&](size_t index) {
    const int64_t lane = static_cast<int64_t>(index);
    for (int64_t task = lane; task < tasks; task += lanes) run(task, lane);
  };
  if (lanes == 1) return body(0);
  run_parallel(parallel, static_cast<size_t>(lanes < tasks ? lanes : tasks), body);
}

// What is left of 0 .. total - 1, as one contiguous part for each that works on it: who has nothing
// left takes the upper half of the largest part. So each reads memory in order, whatever the number
// of threads, and all end together.
class Parts {
 public:
  static constexpr int kMost = 64;

  // For `count` workers. shared: each has a part to begin with; else the first has all of it.
  Parts(int64_t total, int count, bool shared) : count_(count) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t first = shared ? total * i / count : 0;
      const int64_t last = shared ? total * (i + 1) / count : i == 0 ? total : 0;
      parts_[i].at.store(pack(first, last), std::memory_order_relaxed);
    }
  }

  // Takes up to `count` from part `mine` on, or from what is taken from another; false: all done.
  bool take(int mine, int64_t count, int64_t& first, int64_t& last) {
    do {
      uint64_t seen = parts_[mine].at.load();
      while (begin(seen) < end(seen)) {
        first = begin(seen);
        last = first + count < end(seen) ? first + count : end(seen);
        if (parts_[mine].at.compare_exchange_weak(seen, pack(last, end(seen)))) return true;
      }
    } while (steal(mine));
    return false;
  }

 private:
  struct alignas(64) Part {  // a cache line each
    std::atomic<uint64_t> at;
  };

  static uint64_t pack(int64_t first, int64_t last) {
    return static_cast<uint64_t>(first) << 32 | static_cast<uint64_t>(last);
  }
  static int64_t begin(uint64_t part) { return static_cast<int64_t>(part >> 32); }
  static int64_t end(uint64_t part) { return static_cast<int64_t>(part & 0xffffffffu); }

  bool steal(int mine) {
    for (;;) {
      int from = -1;
      uint64_t largest = 0;
      for (int i = 0; i < count_; ++i) {
        const uint64_t seen = parts_[i].at.load();
        if (end(seen) - begin(seen) <= end(largest) - begin(largest)) continue;
        from = i;
        largest = seen;
      }
      if (from < 0) return false;
      const int64_t middle = begin(largest) + (end(largest) - begin(largest)) / 2;
      if (!parts_[from].at.compare_exchange_strong(largest, pack(begin(largest), middle))) continue;
      parts_[mine].at.store(pack(middle, end(largest)));
      return true;
    }
  }

  int count_;
  Part parts_[kMost];
};

// work(first, last) over 0 .. total - 1 in pieces of `count`, a thread's pieces one after the
// other.
template <class Work>
inline void over_parts(const Parallel& parallel, int64_t total, int64_t count, Work work) {
  constexpr int kIfUnknown = 16;
  const bool known = parallel.threads > 0;
  const int64_t pieces = (total + count - 1) / count;
  const int most = !known                            ? kIfUnknown
                   : parallel.threads < Parts::kMost ? parallel.threads
                                                     : Parts::kMost;
  const int workers = pieces < most ? static_cast<int>(pieces) : most;
  if (workers <= 1) return work(0, total);
  Parts parts(total, workers, known);
  auto body = [&](size_t mine) {
    int64_t first, last;
    while (parts.take(static_cast<int>(mine), count, first, last)) work(first, last);
  };
  run_parallel(parallel, static_cast<size_t>(workers), body);
}

}  // namespace qd::QD_ISA
