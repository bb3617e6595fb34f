// Sizes of stored weights (docs/weight-layout.md).
#include "kernels/kernels.h"

namespace qd {

size_t record_bytes(WeightFormat format, int64_t k) {
  if (k <= 0 || k > (int64_t{1} << 31)) return 0;
  const size_t columns = static_cast<size_t>(k);
  const size_t groups = columns / 32, supers = columns / 256;
  const bool whole = columns % 32 == 0, super = columns % 256 == 0;
  size_t bytes = 0;
  switch (format) {
    case WeightFormat::kF32: bytes = columns * 64; break;
    case WeightFormat::kF16: bytes = columns * 32; break;
    case WeightFormat::kW4: bytes = whole ? groups * (256 + 32) : 0; break;
    case WeightFormat::kW4M: bytes = whole ? groups * (256 + 64) : 0; break;
    case WeightFormat::kW4K: bytes = super ? groups * (256 + 32) + supers * 64 : 0; break;
    case WeightFormat::kW6K: bytes = super ? groups * 2 * (192 + 16) + supers * 32 : 0; break;
    case WeightFormat::kW8: bytes = whole ? groups * (512 + 32) : 0; break;
    case WeightFormat::kW8M: bytes = whole ? groups * (512 + 64) : 0; break;
    case WeightFormat::kW8K: bytes = super ? groups * (512 + 32) + supers * 64 : 0; break;
  }
  return (bytes + 63) / 64 * 64;
}

}  // namespace qd
