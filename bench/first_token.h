#pragma once

#include "bench/rows.h"
#include "glimpse/engine/engine.h"

namespace glimpse::bench {

/// From patches to the first token, without pruning and with cuts before the language model or within the
/// encoder, in turns. Rows: that time for each way, its parts, and the ratios that docs/early_cut.md is
/// about. Kept shares are set, `keep` in the end, as random weights choose at random.
void time_first_token(const Prompt& prompt, double keep, int64_t rounds, const Engine& engine, Rows& rows);

}  // namespace glimpse::bench
