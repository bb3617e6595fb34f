// The kernels for any processor.
#define QD_ISA portable
#include "kernels/dot_portable.h"

namespace qd::QD_ISA {
// Accumulators and weights of a tile fill the registers: rows and blocks of 16 outputs.
constexpr int kTileRows = 4;
constexpr int kBlocksPerTile = 1;
}  // namespace qd::QD_ISA

#include "kernels/table.h"

namespace qd {
const Kernels* kernels_portable() { return &portable::kTable; }
}  // namespace qd
