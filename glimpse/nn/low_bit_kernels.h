#pragma once

#include <cstdint>

/// Products with weights of 8 or 4 bits on raw rows, compiled for every instruction set like nn/kernels.h.
///
/// A packed weight [n, k] is cut into blocks of 16 rows (columns of the result) and quads of 4 values along
/// k: 8 bits: [n/16][k/4][16][4] int8. 4 bits: [n/16][k/8][16][4] bytes; the low half of a byte belongs to
/// the even quad, the high half to the odd one, both two's complement; a group of quads is to be multiplied
/// by a whole number per column, [n/16][groups][16] int8. k is padded with zeros to whole quads (8 bits) or
/// groups (4 bits), n to whole blocks.
///
/// Activations are unsigned bytes, 128 + round(x / scale), one scale per row, so that one dot-product
/// instruction takes four of them; what the 128 adds is taken off again by a correction per column.
namespace glimpse::low_bit {

using bf16 = uint16_t;

inline constexpr int64_t block_columns = 16;
/// Rows that `few8` and `few4` can take.
inline constexpr int64_t max_rows = 8;

/// One row x [k] as bytes; u [padded] is 128 beyond k. Returns the scale.
float quantise(const bf16* x, int64_t k, uint8_t* u, int64_t padded);
float quantise(const float* x, int64_t k, uint8_t* u, int64_t padded);

/// Quantised rows: u [m, stride], scale [m].
struct Rows {
  const uint8_t* u;
  const float* scale;
  int64_t m, stride;
};

/// Blocks of a weight of 8 bits: y = scale * row scale * (sum + correction) + bias.
struct Weight8 {
  const int8_t* w;
  const float* scale;         ///< [n]
  const int32_t* correction;  ///< [n]: -128 x the sum of the column's weights
  const float* bias;          ///< [n] or null
  int64_t quads, n;
};

/// Blocks of a weight of 4 bits: the same with the sum over groups of multiple * the group's sum.
struct Weight4 {
  const uint8_t* w;
  const int8_t* multiple;  ///< [n/16][groups][16]
  const float* scale;
  const int32_t* correction;
  const float* bias;
  int64_t quads, group_quads, n;
};

/// y[r, c] for the blocks [first, last); y has n columns. Any number of rows.
void panel8(const Rows& x, const Weight8& w, int64_t first, int64_t last, bf16* y);
void panel8(const Rows& x, const Weight8& w, int64_t first, int64_t last, float* y);
/// The same for few rows, at the speed of reading the weights.
void few8(const Rows& x, const Weight8& w, int64_t first, int64_t last, bf16* y);
void few8(const Rows& x, const Weight8& w, int64_t first, int64_t last, float* y);
void few4(const Rows& x, const Weight4& w, int64_t first, int64_t last, bf16* y);
void few4(const Rows& x, const Weight4& w, int64_t first, int64_t last, float* y);

/// The blocks [first, last) of `from` in 8 bits, times their multiples, for panel8: `to` [blocks][quads][64].
void widen4(const Weight4& from, int64_t first, int64_t last, int8_t* to);

/// The instruction set in use.
const char* target_name();

}  // namespace glimpse::low_bit
