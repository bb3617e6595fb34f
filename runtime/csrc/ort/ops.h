// The ops of the domain "quickdraft", each in a file of its own; quickdraft/hotpath_ops.py and
// hotpath_attention.py say what they compute.
#pragma once

#include "ort/op.h"

namespace qd::ort {

Op qlinear_op();
Op norm_op();
Op rope_table_op();
Op tree_attention_op();
Op kv_write_op();
Op encode_attention_op();
Op cross_attention_op();
Op embed_op();
Op head_top_k_op();

}  // namespace qd::ort
