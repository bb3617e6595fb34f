// Activations rounded to int8 per row and group of 32 columns, laid out for the tiles of tile.h.
//
// A group whose scale is above 2.6 times the root mean square of its row's scales is *coarse*: what
// rounding lost there is rounded again, as a second term. A few groups in a hundred are, and they
// carry a third of the error (docs/decisions/005-second-terms-for-coarse-groups.md). Which groups
// are coarse is a fact of the row alone, so a row's bits still do not depend on the others.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/kernels.h"

namespace qd::QD_ISA {

// What is known of the 32 codes of one group of one row.
struct GroupFacts {
  float scale;
  float scaled_sum;   // scale * sum of the codes
  int32_t starts[2];  // where sums of products start, see Zero
};

// One group of one row.
struct RoundedGroup {
  int8_t codes[32];
  GroupFacts facts;
};
static_assert(sizeof(RoundedGroup) == 48);

// Groups of the rows of one tile, one after the other: of each the codes [rows][32] of all rows,
// then their facts [rows]. So everything that a group needs is found from one address.
struct RoundedGroups {
  uint8_t* memory;
  int64_t rows;

  int8_t* codes(int64_t group, int64_t row) const {
    return reinterpret_cast<int8_t*>(memory + 48 * rows * group + 32 * row);
  }
  GroupFacts& facts(int64_t group, int64_t row) const {
    return *reinterpret_cast<GroupFacts*>(memory + 48 * rows * group + 32 * rows + 16 * row);
  }
};

// The rows of one tile. coarse: the second terms of `coarse_count` groups, those that are coarse in
// any row, ascending; rows in which a group is not coarse hold zeros there, which add nothing.
struct RoundedTile {
  RoundedGroups all;
  RoundedGroups coarse;
  int32_t* coarse_groups;
  int32_t* coarse_count;
};

inline int64_t rounded_tile_bytes(int64_t height, int64_t groups) {
  return (height * groups * 2 * static_cast<int64_t>(sizeof(RoundedGroup)) + 4 * groups + 64 + 63) /
         64 * 64;
}

inline RoundedTile rounded_tile(uint8_t* memory, int64_t height, int64_t groups) {
  const int64_t bytes = height * groups * static_cast<int64_t>(sizeof(RoundedGroup));
  int32_t* const list = reinterpret_cast<int32_t*>(memory + 2 * bytes);
  return {{memory, height}, {memory + bytes, height}, list + 1, list};
}

inline void put(const RoundedGroup& from, const RoundedGroups& to, int64_t group, int64_t row) {
  std::memcpy(to.codes(group, row), from.codes, 32);
  to.facts(group, row) = from.facts;
}

constexpr float kSmallest = 1e-30f;  // a group with nothing larger is rounded to zeros

// The largest magnitude of 32 values; infinities and NaN among them make `broken` NaN.
inline float largest_of_group(const float* x, V& broken) {
  const V a = load(x), b = load(x + 16);
  broken = fma(a, zero(), fma(b, zero(), broken));
  return max_of(max(abs(a), abs(b)));
}

// The scale of a group: its largest magnitude / 127.
inline float scale_of(float largest) { return largest > kSmallest ? largest * (1.0f / 127) : 0.0f; }

// What is subtracted from the codes of weights. Sums of products start at minus that times the sum
// of the activations: of 16 and 16 columns where weights have groups of 16 (halves), else of
// all 32.
struct Zero {
  int32_t value;
  bool halves;
};

// Rounds 32 values to codes: value / scale to nearest even. rest (32 values, or null) receives what
// rounding lost. A scale of NaN gives zeros for codes, and NaN for every sum they are in.
inline void round_group(const float* x, float largest, float scale, Zero zero_code, float* rest,
                        int8_t* codes, GroupFacts& facts) {
  const V a = load(x), b = load(x + 16);
  V p = zero(), q = zero();
  if (scale > 0.0f) {
    const V inverse = set1(127.0f / largest);
    p = round_even(mul(a, inverse));
    q = round_even(mul(b, inverse));
  }
  store_i8(codes, p);
  store_i8(codes + 16, q);
  const float all = sum(add(p, q));  // of small whole numbers, so in any order
  const float second = zero_code.halves ? sum(q) : 0.0f;
  facts.scale = scale;
  facts.scaled_sum = scale * all;
  facts.starts[0] = -zero_code.value * static_cast<int32_t>(all - second);
  facts.starts[1] = -zero_code.value * static_cast<int32_t>(second);
  if (rest) {
    store(rest, fma(p, set1(-scale), a));
    store(rest + 16, fma(q, set1(-scale), b));
  }
}

// The second terms of one row, before they are merged with those of the other rows of its tile.
struct CoarseRow {
  RoundedGroup* terms;  // [coarse_limit]
  int32_t* groups;      // likewise
  int32_t count;
};

constexpr float kCoarse = 6.76f;  // square of the scale against the mean square

// More groups than this cannot be coarse: their squares alone would exceed the sum of all.
inline int64_t coarse_limit(int64_t groups) { return groups / 6 + 1; }

inline int64_t coarse_row_bytes(int64_t groups) {
  return coarse_limit(groups) * static_cast<int64_t>(sizeof(RoundedGroup) + 4) / 64 * 64 + 64;
}

// Marks the groups of a row that hold infinities or NaN: their scale becomes NaN.
inline void mark_broken(const float* x, int64_t groups, float* largest) {
  for (int64_t g = 0; g < groups; ++g) {
    V broken = zero();
    largest_of_group(x + 32 * g, broken);
    largest[g] += sum(broken);
  }
}

// Rounds one row into its places of a tile; largest: [groups], overwritten.
inline void round_row(const float* x, int64_t groups, Zero zero_code, const RoundedGroups& to,
                      int64_t row, float* largest, CoarseRow& coarse) {
  V broken = zero();
  for (int64_t g = 0; g < groups; ++g) largest[g] = largest_of_group(x + 32 * g, broken);
  const bool whole = sum(broken) == 0.0f;
  if (!whole) mark_broken(x, groups, largest);
  float squares = 0;
  for (int64_t g = 0; g < groups; ++g) squares += scale_of(largest[g]) * scale_of(largest[g]);
  const float limit = kCoarse * squares / static_cast<float>(groups);
  coarse.count = 0;
  for (int64_t g = 0; g < groups; ++g) {
    const bool number = whole || largest[g] == largest[g];
    const float scale = number ? scale_of(largest[g]) : largest[g];
    const bool is_coarse = whole && scale * scale > limit;
    float rest[32];
    round_group(x + 32 * g, largest[g], scale, zero_code, is_coarse ? rest : nullptr,
                to.codes(g, row), to.facts(g, row));
    if (!is_coarse) continue;
    const float left = largest_of_group(rest, broken);
    coarse.groups[coarse.count] = static_cast<int32_t>(g);
    RoundedGroup& term = coarse.terms[coarse.count++];
    round_group(rest, left, scale_of(left), zero_code, nullptr, term.codes, term.facts);
  }
}

// Lays the second terms of all rows of a tile out by group.
inline void merge_coarse(const CoarseRow* rows, int64_t height, const RoundedTile& tile) {
  int32_t at[kTileRows] = {};
  int32_t count = 0;
  for (;;) {
    int32_t next = INT32_MAX;
    for (int64_t r = 0; r < height; ++r)
      if (at[r] < rows[r].count && rows[r].groups[at[r]] < next) next = rows[r].groups[at[r]];
    if (next == INT32_MAX) break;
    for (int64_t r = 0; r < height; ++r) {
      const bool has = at[r] < rows[r].count && rows[r].groups[at[r]] == next;
      put(has ? rows[r].terms[at[r]++] : RoundedGroup{}, tile.coarse, count, r);
    }
    tile.coarse_groups[count++] = next;
  }
  *tile.coarse_count = count;
}

}  // namespace qd::QD_ISA
