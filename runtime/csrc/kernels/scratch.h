// Memory that a kernel needs while it runs.
#pragma once

#include <cstddef>

namespace qd {

// At least `bytes` bytes, 64-byte aligned, of the calling thread; contents are undefined. Stays
// valid until this thread asks for the same `use` again. Throws std::bad_alloc. (Files compiled for
// one instruction set must not instantiate std templates: the linker keeps one copy for all of
// them, and it might be the one that this machine cannot run.)
enum class Scratch { kActivations, kAttention, kTop, kEncoder, kCount };
void* scratch(Scratch use, size_t bytes);

}  // namespace qd
