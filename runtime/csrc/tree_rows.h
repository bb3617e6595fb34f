// Whether the rows of an attention step form a tree that starts at the committed length.
#pragma once

#include "kernels/kernels.h"

namespace qd {

// The first row whose position or ancestors are not those of such a tree; the number of rows if all
// are. In a tree, ancestors come before their row, and the one at depth d stands at position past +
// d. Positions of staged rows are not known here: their slots are the tree's, whatever they hold.
inline int64_t first_unsound_row(const AttentionArgs& args) {
  const int64_t past = args.committed(), staged = args.staged;
  for (int64_t r = 0; r < args.kv.rows; ++r) {
    if (!args.ancestors) {
      if (staged > 0 || args.positions[r] != past + r) return r;
      continue;
    }
    // Compared before subtracting: a position may be any int64.
    if (args.positions[r] < past) return r;
    const int64_t depth = args.positions[r] - past;
    if (depth >= args.depths) return r;
    const int32_t* path = args.ancestors + r * args.depths;
    for (int64_t d = 0; d < depth; ++d) {
      if (path[d] < 0 || path[d] >= staged + r) return r;
      if (path[d] >= staged && args.positions[path[d] - staged] != past + d) return r;
    }
    if (path[depth] != staged + r) return r;
  }
  return args.kv.rows;
}

}  // namespace qd
