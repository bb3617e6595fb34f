// Runs a callable over independent pieces of work.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"

namespace qd::QD_ISA {

// body(index) for each index < total, in any order, maybe on several threads.
template <class Body>
inline void run_parallel(const Parallel& parallel, size_t total, Body& body) {
  if (total == 0) return;
  parallel.run(
      parallel.self, total, [](void* arg, size_t index) { (*static_cast<Body*>(arg))(index); },
      &body);
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

}  // namespace qd::QD_ISA
