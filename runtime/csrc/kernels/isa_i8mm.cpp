// The kernels for Armv8.6 with int8 matrix products (Apple M2, Cortex-X2 and later).
#define QD_ISA i8mm
#define QD_I8MM
#include "kernels/dot_neon.h"

namespace qd::QD_ISA {
// Accumulators and weights of a tile fill the registers: rows and blocks of 16 outputs.
constexpr int kTileRows = 4;
constexpr int kBlocksPerTile = 1;
}  // namespace qd::QD_ISA

#include "kernels/table.h"

namespace qd {
const Kernels* kernels_i8mm() { return &i8mm::kTable; }
}  // namespace qd
