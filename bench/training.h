#pragma once

#include "bench/answers.h"

namespace glimpse::bench {

/// Times one training step (method.md section 5) of one example with an answer of `answer` tokens: gradients
/// through the glimpse and answer rows only, and through every row as the reference has it. Rows: time,
/// memory above the weights.
void time_training(const Question& question, int64_t answer, Rows& rows);

}  // namespace glimpse::bench
