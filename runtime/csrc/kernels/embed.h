// Rows of a stored weight matrix as float32. Bytes and values: docs/weight-layout.md.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/kernels.h"
#include "kernels/parallel.h"

namespace qd::QD_ISA {

// Element `index` of an array of float16 that starts at `bytes`.
inline float half_at(const uint8_t* bytes, int64_t index) {
  uint16_t half;
  std::memcpy(&half, bytes + 2 * index, 2);
  return half_to_float(half);
}

// The code of column c of output o, in the sections of codes of 4, 6 and 8 bits.
inline int code4(const uint8_t* codes, int64_t c, int64_t o) {
  const int64_t z = c % 32 / 8, b = c % 4;
  const uint8_t pair = codes[c / 32 * 256 + 64 * z + 4 * o + b];
  return c % 8 < 4 ? pair & 15 : pair >> 4;
}
inline int code6(const uint8_t* codes, int64_t c, int64_t o) {
  const uint8_t* group = codes + c / 16 * 192;
  const int64_t z = c % 16 / 8, b = c % 4;
  const uint8_t pair = group[64 * z + 4 * o + b];
  const int high = group[128 + 4 * o + b] >> (2 * (c % 16 / 4)) & 3;
  return (c % 8 < 4 ? pair & 15 : pair >> 4) | (high << 4);
}
inline int code8(const uint8_t* codes, int64_t c, int64_t o) {
  return codes[c / 32 * 512 + 64 * (c % 32 / 4) + 4 * o + c % 4];
}

// Output o (0..15) of a record of k columns. One rounding per product and per sum, none fused.
template <class Code>
inline void decode_scaled(const uint8_t* scales, int64_t k, int64_t o, int zero_code, Code code,
                          float* out) {
  for (int64_t c = 0; c < k; ++c)
    out[c] = half_at(scales, c / 32 * 16 + o) * static_cast<float>(code(c) - zero_code);
}
template <class Code>
inline void decode_minimum(const uint8_t* scales, int64_t k, int64_t o, Code code, float* out) {
  const uint8_t* minima = scales + k / 32 * 32;
  for (int64_t c = 0; c < k; ++c) {
    const int64_t at = c / 32 * 16 + o;
    out[c] = half_at(scales, at) * static_cast<float>(code(c)) + half_at(minima, at);
  }
}
template <class Code>
inline void decode_two_level(const uint8_t* scales, int64_t k, int64_t o, Code code, float* out) {
  const uint8_t* minima = scales + k / 32 * 16;
  const uint8_t* super_scales = minima + k / 32 * 16;
  const uint8_t* super_minima = super_scales + k / 256 * 32;
  for (int64_t c = 0; c < k; ++c) {
    const int64_t at = c / 32 * 16 + o, super = c / 256 * 16 + o;
    const float scale = half_at(super_scales, super) * static_cast<float>(scales[at]);
    const float minimum = half_at(super_minima, super) * static_cast<float>(minima[at]);
    out[c] = scale * static_cast<float>(code(c)) - minimum;
  }
}
inline void decode_w6k(const uint8_t* record, int64_t k, int64_t o, float* out) {
  const uint8_t* scales = record + k / 16 * 192;
  const uint8_t* super_scales = scales + k;
  for (int64_t c = 0; c < k; ++c) {
    const int8_t factor = static_cast<int8_t>(scales[c / 16 * 16 + o]);
    const float scale = half_at(super_scales, c / 256 * 16 + o) * static_cast<float>(factor);
    out[c] = scale * static_cast<float>(code6(record, c, o) - 32);
  }
}
inline void decode_row(WeightFormat format, const uint8_t* record, int64_t k, int64_t o,
                       float* out) {
  const auto four = [=](int64_t c) { return code4(record, c, o); };
  const auto eight = [=](int64_t c) { return code8(record, c, o); };
  const uint8_t* after4 = record + k * 8;
  const uint8_t* after8 = record + k * 16;
  switch (format) {
    case WeightFormat::kF32:
      for (int64_t c = 0; c < k; ++c) std::memcpy(out + c, record + (c * 16 + o) * 4, 4);
      return;
    case WeightFormat::kF16:
      for (int64_t c = 0; c < k; ++c) out[c] = half_at(record, c * 16 + o);
      return;
    case WeightFormat::kW4: return decode_scaled(after4, k, o, 8, four, out);
    case WeightFormat::kW4M: return decode_minimum(after4, k, o, four, out);
    case WeightFormat::kW4K: return decode_two_level(after4, k, o, four, out);
    case WeightFormat::kW6K: return decode_w6k(record, k, o, out);
    case WeightFormat::kW8: return decode_scaled(after8, k, o, 128, eight, out);
    case WeightFormat::kW8M: return decode_minimum(after8, k, o, eight, out);
    case WeightFormat::kW8K: return decode_two_level(after8, k, o, eight, out);
  }
}

inline void embed(const EmbedArgs& args, const Parallel& parallel) {
  const int64_t record = static_cast<int64_t>(record_bytes(args.format, args.k));
  constexpr int64_t kRows = 8;
  auto body = [&](size_t part) {
    const int64_t first = static_cast<int64_t>(part) * kRows;
    const int64_t last = first + kRows < args.rows ? first + kRows : args.rows;
    for (int64_t r = first; r < last; ++r) {
      const int64_t id = args.ids[r];
      float* y = args.y + r * args.k;
      decode_row(args.format, args.weights + id / kBlock * record, args.k, id % kBlock, y);
      if (args.scale != 1)
        for (int64_t c = 0; c < args.k; ++c) y[c] *= args.scale;
    }
  };
  run_parallel(parallel, static_cast<size_t>((args.rows + kRows - 1) / kRows), body);
}

}  // namespace qd::QD_ISA
