#pragma once

#include "bench/answers.h"

namespace glimpse::bench {

/// What serving rests on: causal attention at 4,096 rows, a second question about the same image, eight
/// answers decoded together, and time and memory as images grow (`sizes`: visual tokens).
void time_serving(const Question& question, const std::vector<int64_t>& sizes, const Limits& limits,
                  Rows& rows);

}  // namespace glimpse::bench
