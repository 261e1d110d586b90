#pragma once

#include "bench/limits.h"
#include "glimpse/eval/flops.h"

namespace glimpse::bench {

/// One windowed encoder block with random weights, its windows batched, against the same block with one
/// masked attention over all patches, which is what a plain implementation does. The mask is made outside the
/// timing.
void time_vit_block(const VisionShape& shape, const Grid& grid, int rounds, const Limits& limits, Rows& rows);

}  // namespace glimpse::bench
