#pragma once

#include "bench/answers.h"

namespace glimpse::bench {

/// A whole `glimpse ask -n 1` about a picture, on the model that comes with the program.
void time_startup(const Question& question, Rows& rows);

/// From loading to the first token about a small picture, with the weights out of the page cache and in it,
/// beside the time in which the disk delivers what was read. Not in a process that has the weights mapped.
void time_cold_start(const Question& question, Rows& rows);

/// Peak resident memory, mapped weights included, of loading the model, a pruned prefill and 16 tokens.
void measure_resident(const Question& question, Rows& rows);

}  // namespace glimpse::bench
