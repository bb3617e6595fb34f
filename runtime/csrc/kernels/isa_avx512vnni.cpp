// The kernels for AVX-512 with VNNI (Intel Ice Lake and later servers, AMD Zen 4 and later).
#define QD_ISA avx512vnni
#include "kernels/dot_avx512vnni.h"

namespace qd::QD_ISA {
// Accumulators and weights of a tile fill the registers: rows and blocks of 16 outputs.
constexpr int kTileRows = 6;
constexpr int kBlocksPerTile = 2;
}  // namespace qd::QD_ISA

#include "kernels/table.h"

namespace qd {
const Kernels* kernels_avx512vnni() { return &avx512vnni::kTable; }
}  // namespace qd
