// Threads of our own for parallel loops, shared by all sessions of a process.
#pragma once

#include "kernels/kernels.h"

namespace qd {

constexpr int kMostThreads = 1024;

// A loop runner with `threads` threads, the calling one among them, 1 to kMostThreads. Loops that
// are under way at once have threads each; those that take turns share theirs.
Parallel pool_of(int threads);

}  // namespace qd
