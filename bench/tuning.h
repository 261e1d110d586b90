#pragma once

#include "bench/answers.h"

namespace glimpse::bench {

/// What a step of tuning is about.
struct TuningWork {
  int64_t prompts = 1, completions = 4, answer = 64;  ///< tokens of each completion
};

/// Times one step of tuning (method.md section 6), drawing included: with all that a prompt's completions
/// share done once; and the reference's way, each completion on its own from the picture on, its whole prompt
/// without anything dropped run and back-propagated for its loss, and all that the gradients need kept. Rows:
/// samples (prompts) per second, memory above the weights, and what both gain.
void time_tuning(const Question& question, const TuningWork& work, Rows& rows);

}  // namespace glimpse::bench
