#pragma once

#include <cstdint>

/// Rows of a KV cache in 8 or 4 bits on raw memory, compiled for every instruction set like nn/kernels.h.
///
/// A row is one head's key or value of one token: codes, then one bf16 scale per group of numbers. A number
/// is scale x code. 8 bits: codes from -127 to 127, scale = greatest magnitude / 127. 4 bits: codes from -8
/// to 7, kept plus 8, scale = number of greatest magnitude / -8; a group's first half lies in the low halves
/// of its bytes, the second in the high ones. Codes belong to the scale as rounded to bf16, and 0 stays 0. A
/// group with a number that is not finite has NaN for its scale.
namespace glimpse::kv {

using bf16 = uint16_t;

/// Sizes of a row that holds `d` numbers, a multiple of `head_unit`.
struct RowShape {
  int64_t d = 0;
  int bits = 8;
  int64_t group() const { return d % 32 == 0 ? 32 : 16; }
  int64_t code_bytes() const { return d * bits / 8; }
  int64_t bytes() const { return code_bytes() + d / group() * 2; }
};
inline constexpr int64_t head_unit = 16;

/// The normalised Hadamard transform of x [d] in place, in blocks as large as the greatest power of two that
/// divides d. Its own inverse; dot products of two rows that both went through it are what they were.
void rotate(float* x, int64_t d);

/// One row x [d], rotated first if asked to: its bytes.
void quantise(const bf16* x, const RowShape& shape, bool rotated, uint8_t* to);
void quantise(const float* x, const RowShape& shape, bool rotated, uint8_t* to);

/// The numbers [n, d] of n rows one after the other.
void widen(const uint8_t* rows, int64_t n, const RowShape& shape, float* out);

/// y[i * ldy + s] = q[i, :] . row s, for i < m <= kernels::max_rows and s < n; q [m, d].
void dots(const float* q, int64_t m, const uint8_t* rows, int64_t n, const RowShape& shape, float* y,
          int64_t ldy);
/// y[i, :] = sum_s p[i * ldp + s] * row s, for i < m <= kernels::max_rows and s < n; y [m, d].
void mix(const float* p, int64_t ldp, int64_t m, const uint8_t* rows, int64_t n, const RowShape& shape,
         float* y);

/// The instruction set in use.
const char* target_name();

}  // namespace glimpse::kv
