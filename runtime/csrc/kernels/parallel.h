// Runs a callable over independent pieces of work.
#pragma once

#include <cstddef>

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

}  // namespace qd::QD_ISA
