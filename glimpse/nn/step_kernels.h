#pragma once

#include <cstdint>

#include "glimpse/nn/low_bit_kernels.h"

namespace glimpse::low_bit {

/// Rows as signed bytes, with their sums over groups of inputs: x [m, stride], 0 beyond k; scale [m]; sum
/// [m, groups].
struct SignedRows {
  const int8_t* x;
  const float* scale;
  const float* sum;
  int64_t m, stride, groups;
};

/// Blocks of a weight [n, k] in steps of 4 bits, which lie as Weight4's but are not signed: y = scale * row
/// scale * the sum over groups of their scale * (the group's sum + zero * the row's sum) + bias.
struct SteppedWeight {
  const uint8_t* w;
  const uint8_t* table;   ///< [16], what a step stands for
  const uint16_t* group;  ///< [n/16][groups][2][16] float16, scales and zeros
  const float* scale;     ///< [n]
  const float* bias;      ///< [n] or null
  int64_t quads, group_quads, n;
};

/// y[r, c] for the blocks [first, last); y has n columns. Any number of rows, each with the same result
/// whichever rows there are beside it.
void panel_steps(const SignedRows& x, const SteppedWeight& w, int64_t first, int64_t last, bf16* y);
void panel_steps(const SignedRows& x, const SteppedWeight& w, int64_t first, int64_t last, float* y);
/// The same for up to max_rows rows, at the speed of reading the weights.
void few_steps(const SignedRows& x, const SteppedWeight& w, int64_t first, int64_t last, bf16* y);
void few_steps(const SignedRows& x, const SteppedWeight& w, int64_t first, int64_t last, float* y);

/// The instruction set in use.
const char* step_target_name();

}  // namespace glimpse::low_bit
