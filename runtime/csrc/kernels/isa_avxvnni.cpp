// The kernels for AVX2 with AVX-VNNI (Intel Alder Lake and later).
#define QD_ISA avxvnni
#define QD_AVXVNNI
#include "kernels/dot_avx2.h"

namespace qd::QD_ISA {
// Accumulators and weights of a tile fill the registers: rows and blocks of 16 outputs.
constexpr int kTileRows = 4;
constexpr int kBlocksPerTile = 1;
}  // namespace qd::QD_ISA

#include "kernels/table.h"

namespace qd {
const Kernels* kernels_avxvnni() { return &avxvnni::kTable; }
}  // namespace qd
