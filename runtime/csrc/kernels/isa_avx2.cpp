// The kernels for AVX2 with FMA and F16C (x86-64 since 2013).
#define QD_ISA avx2
#include "kernels/dot_avx2.h"

namespace qd::QD_ISA {
// Accumulators and weights of a tile fill the registers: rows and blocks of 16 outputs.
constexpr int kTileRows = 4;
constexpr int kBlocksPerTile = 1;
}  // namespace qd::QD_ISA

#include "kernels/table.h"

namespace qd {
const Kernels* kernels_avx2() { return &avx2::kTable; }
}  // namespace qd
