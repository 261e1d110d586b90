#pragma once

#include "bench/answers.h"

namespace glimpse::bench {

/// From patches to the first token, without pruning and with cuts before the language model or within the
/// encoder, in turns. Rows: that time for each way, its parts, and the ratios that docs/early_cut.md is
/// about. Kept shares are set, as random weights choose at random.
void time_first_token(const Question& question, const Engine& engine, Rows& rows);

}  // namespace glimpse::bench
