#pragma once

#include "bench/rows.h"
#include "glimpse/eval/flops.h"

namespace glimpse::bench {

/// The selection functions of the compared methods on 4,096 random tokens as wide as the language model, of
/// which 11.1 % are kept, and the streamed column sums of an encoder block over `grid`.
void time_selection(int64_t hidden, const VisionShape& shape, const Grid& grid, int rounds, Rows& rows);

}  // namespace glimpse::bench
