// What a layer makes on its way has up to some 100 MB and is gone before the next one, which makes the same
// again. By default glibc returns blocks of that size to the system at once, and each new one comes as
// cleared pages, one fault for 4 KiB (docs/results.md has what that takes). Here they stay in the heap for
// the next layer, in one arena, as those of other threads are too small for them. The free end of the heap is
// still given back. Who sets GLIBC_TUNABLES gets what that says.
#include <malloc.h>

#include <cstdlib>

namespace {

constexpr int kMostReused = 128 << 20, kMostKept = 256 << 20;  // bytes

[[maybe_unused]] const bool kReuses = !std::getenv("GLIBC_TUNABLES") && mallopt(M_ARENA_MAX, 1) == 1 &&
                                      mallopt(M_MMAP_THRESHOLD, kMostReused) == 1 &&
                                      mallopt(M_TRIM_THRESHOLD, kMostKept) == 1;

}  // namespace
