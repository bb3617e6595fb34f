// Choosing the largest values: the part of the output head that needs no vectors.
#pragma once

#include <cstdint>

namespace qd {

constexpr int64_t kTopChunk = 16384;  // logits that are searched together
constexpr int64_t kTopBlock = 64;     // logits that share a maximum

// A logit and its id as one number that sorts: larger logits first, equal ones by id. NaN sorts
// before all numbers, so that it is seen.
using TopKey = uint64_t;
float top_value(TopKey key);
int64_t top_id(TopKey key);

// The largest `top` of count <= kTopChunk logits, sorted, to keys; returns how many there are.
// maxima: per block of 64. first_id: id of the first logit. work: [kTopChunk].
int64_t select_top(const float* logits, const float* maxima, int64_t count, int64_t first_id,
                   int64_t top, TopKey* work, TopKey* keys);
// Sorts `count` keys and keeps the first `top` of them in front.
void merge_top(TopKey* keys, int64_t count, int64_t top);

}  // namespace qd
