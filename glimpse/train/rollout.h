#pragma once

#include "glimpse/train/group.h"

namespace glimpse {

/// How completions are drawn (method.md section 6).
struct RolloutOptions {
  int64_t completions = 4;       ///< of each prompt
  int64_t max_new_tokens = 128;  ///< after the first
  int64_t top_k = 50;            ///< from the second token on; 0: all
  double temperature = 1;        ///< 0: the likeliest tokens
  bool dropout = true;           ///< that of the adapter acts: nothing is the same for two completions

  Fields fields();  ///< those of the user: not the last two
};

/// Draws completions for several prompts together: each prompt runs once, pruned behind the cut, and its
/// cache is forked where completions part: what is the same in several runs once. They end with an end token
/// (which does not end them as the first) or at their longest. `prompts` and `seeds`: of each group its
/// prompt, embedded or further, and a number that gives the same completions again, whatever others are drawn
/// beside it but for rounding. With dropout, whose mask is one for all completions in their prompt and each
/// token's own behind it, they depend on the generator and all that is drawn in the same call.
void roll_out(const Vlm& model, std::span<Group> groups, std::span<const StartedPrompt> prompts,
              std::span<const int64_t> seeds, const GroupLimits& limits, const RolloutOptions& options);

}  // namespace glimpse
