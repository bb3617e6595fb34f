// Everything that is compiled once per instruction set, and the table of it.
#pragma once

#include "kernels/attention.h"
#include "kernels/embed.h"
#include "kernels/head.h"
#include "kernels/kernels.h"
#include "kernels/kv_write.h"
#include "kernels/linear.h"
#include "kernels/math.h"
#include "kernels/norm.h"
#include "kernels/rope.h"

#define QD_TEXT_OF(name) #name
#define QD_TEXT(name) QD_TEXT_OF(name)

namespace qd::QD_ISA {

const Kernels kTable = {QD_TEXT(QD_ISA), linear,     head,     embed,
                        norm_rows,       rope_table, kv_write, attention};

}  // namespace qd::QD_ISA
