#pragma once

#include "bench/answers.h"

namespace glimpse::bench {

/// Causal bf16 attention of 4,096 rows to themselves, in the shape of the language model.
void time_flash(const DecoderConfig& config, int rounds, const Limits& limits, Rows& rows);

/// Attention of one new row over a cache of 4,096 and of 32,768 rows as it comes and in 8 and 4 bits, in the
/// shape of the language model.
void time_kv(const DecoderConfig& config, int rounds, Rows& rows);

/// A second question about an image that was just seen, beside the first.
void time_questions(const Question& question, const Engine& engine, Rows& rows);

/// Eight answers decoded together, beside one alone, after a prompt that is not pruned.
void time_batch(const Question& question, const Engine& engine, Rows& rows);

/// Time to the first token and memory as images grow: `sizes`, in visual tokens, ascending, once each.
/// Pruned.
void time_sizes(Question question, const std::vector<int64_t>& sizes, const Engine& engine, Rows& rows);

}  // namespace glimpse::bench
