// The kernels for Armv8.2 with dot products (Cortex-A76 and later, Apple M1).
#define QD_ISA dotprod
#include "kernels/dot_neon.h"

namespace qd::QD_ISA {
// Accumulators and weights of a tile fill the registers: rows and blocks of 16 outputs.
constexpr int kTileRows = 4;
constexpr int kBlocksPerTile = 1;
}  // namespace qd::QD_ISA

#include "kernels/table.h"

namespace qd {
const Kernels* kernels_dotprod() { return &dotprod::kTable; }
}  // namespace qd
