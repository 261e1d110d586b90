#pragma once

#include "bench/rows.h"
#include "glimpse/eval/flops.h"

namespace glimpse::bench {

/// The selection functions of the compared methods on random tokens [visual, hidden], and the streamed column
/// sums of an encoder block over `grid`.
void time_selection(int64_t visual, int64_t hidden, double keep, const VisionShape& shape, const Grid& grid,
                    int rounds, Rows& rows);

}  // namespace glimpse::bench
