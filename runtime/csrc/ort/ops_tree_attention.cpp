#include <algorithm>

#include "ort/cache_layer.h"
#include "ort/ops.h"
#include "tree_rows.h"

namespace qd::ort {
namespace {

// Writes keys and values of a step into one layer of the cache, in place, and attends.
class TreeAttention {
 public:
  static constexpr char kName[] = "TreeAttention";
  enum Input { kQ, kK, kV, kPositions, kAncestors, kPast, kCache, kRope, kSinks, kRelative };
  static constexpr Formal kInputs[] = {{"q", Element::kFloat},
                                       {"k", Element::kFloat},
                                       {"v", Element::kFloat},
                                       {"positions", Element::kInt64},
                                       {"ancestors", Element::kInt32},
                                       {"past", Element::kInt64},
                                       {"cache", Element::kUint8},
                                       {"rope", Element::kFloat, Presence::kOptional},
                                       {"sinks", Element::kFloat, Presence::kOptional},
                                       {"relative", Element::kFloat, Presence::kOptional}};
  enum Output { kY, kCacheOut };
  static constexpr Formal kOutputs[] = {{"y", Element::kFloat}, {"cache_out", Element::kUint8}};
  static constexpr Alias kAliases[] = {{kCache, kCacheOut}};

  explicit TreeAttention(const Creation& creation)
      : heads_(creation.integer("heads", 1, kMaxHeads)),
        layer_(creation, {kK, kV, kPast, kCache, kRope, kCacheOut}),
        scale_(creation.real("scale", kAnyReal)),
        window_(creation.integer("window", 0, kMaxColumn, 0)),
        softcap_(creation.real("softcap", 0, 0)),
        q_offset_(creation.integer("q_offset", 0, kMaxColumn, 0)),
        sinks_(creation, kSinks, {heads_}),
        relative_(creation, kRelative, heads_) {
    creation.require(heads_ % layer_.kv_heads() == 0, "attribute heads is no multiple of kv_heads");
  }

  void compute(const Run& run) const {
    const int64_t columns = heads_ * layer_.head_dim();
    const auto q = run.input<float>(kQ, {kAnySize, kAnySize});
    const int64_t rows = q.dims[0];
    const auto k = run.same(kQ, kK) ? q : run.input<float>(kK, {rows, kAnySize});
    const auto v = run.same(kQ, kV) ? q : run.input<float>(kV, {rows, kAnySize});
    run.require_columns(kQ, q.dims[1], q_offset_, columns);
    AttentionArgs args;
    args.kv = layer_.read(run, k, v);
    args.q = q.data + q_offset_;
    args.q_stride = q.dims[1];
    args.heads = heads_;
    args.scale = scale_;
    args.window = window_;
    args.softcap = softcap_;
    args.sinks = sinks_.get_optional(run);
    relative_.read(run, args);
    read_rows(run, args);
    layer_.place(run, args.kv.cache);
    args.y = run.output<float>(kY, {rows, columns});
    if (rows > 0) kernels()->attention(args, run.parallel());
  }

  static void infer(const Inference& inference) {
    const auto heads = inference.integer("heads"), head_dim = inference.integer("head_dim");
    inference.set_output(kY, {inference.input(kQ, 0), product(heads, head_dim)});
    inference.set_output(kCacheOut, {inference.input(kCache, 0)});
  }

 private:
  void read_rows(const Run& run, AttentionArgs& args) const {
    args.positions = run.list<int64_t>(kPositions, args.kv.rows);
    const auto ancestors = run.input<int32_t>(kAncestors, {args.kv.rows, kAnySize});
    args.depths = ancestors.dims[1];
    args.ancestors = args.depths > 0 ? ancestors.data : nullptr;
    read_staged(run, args);
    const int64_t row = first_unsound_row(args);
    if (row == args.kv.rows) return;
    const std::string position = std::to_string(args.positions[row]);
    const std::string past = std::to_string(args.committed());
    run.refuse("row " + std::to_string(row) + " at position " + position +
               (args.ancestors ? " is no node of a tree that starts at position " + past +
                                     ": see inputs positions and ancestors"
                               : " is not in a chain that starts at position " + past +
                                     ": see inputs positions and past"));
  }

  // The first row names itself last on its path: its number is that of the rows before it.
  static void read_staged(const Run& run, AttentionArgs& args) {
    if (!args.ancestors || args.kv.rows == 0) return;
    const int64_t first = args.positions[0], past = args.kv.past;
    if (first < past || first - past >= args.depths) return;  // refused as a row, as is a negative
    const int64_t staged = std::max(0, args.ancestors[first - past]);
    if (staged > args.kv.cache.capacity - past - args.kv.rows) {
      run.refuse("row 0 is number " + std::to_string(staged) + " of its tree: with " +
                 std::to_string(past) + " committed and " + std::to_string(args.kv.rows) +
                 " new rows that does not fit a cache of " +
                 std::to_string(args.kv.cache.capacity) + " slots");
    }
    args.staged = staged;
    args.kv.past += staged;
  }

  int64_t heads_;
  CacheLayer layer_;
  float scale_;
  int64_t window_;
  float softcap_;
  int64_t q_offset_;
  Fixed<float> sinks_;
  Relative relative_;
};

}  // namespace

Op tree_attention_op() { return Callbacks<TreeAttention>::op(); }

}  // namespace qd::ort
