#pragma once

#include <ATen/ATen.h>

namespace glimpse {

/// A linear layer's weight [out, in] in 8 bits with one scale per output, or in 4 bits with one per output
/// and group of inputs, in the layout its kernels read (nn/low_bit_kernels.h), so that a mapped file needs no
/// packing.
struct LowBitWeight {
  int64_t out = 0, in = 0;
  int64_t group = 0;      ///< inputs that share a scale; 0: 8 bits, all of them
  at::Tensor data;        ///< int8: [blocks, quads, 16, 4]; uint8: [blocks, quads / 2, 16, 4]
  at::Tensor scale;       ///< float32 [16 * blocks]; bf16 [blocks, groups, 16]
  at::Tensor correction;  ///< what the offset of the activations adds: int32 or float32 [16 * blocks]

  int bits() const { return group ? 4 : 8; }
  size_t bytes() const { return data.nbytes() + scale.nbytes() + correction.nbytes(); }
  /// The weight as it is used: [out, in] float32.
  at::Tensor dequantised() const;
};

/// Inputs per scale in 4 bits, unless asked otherwise.
inline constexpr int64_t default_group = 64;

/// Rounds weight [out, in] (bf16 or float32, on the CPU) to 8 bits (`group` 0) or 4 bits (`group` 32 or 64).
LowBitWeight quantise_weight(const at::Tensor& weight, int64_t group);

/// x [m, in] (bf16 or float32) times the weight, plus bias [out] if defined: [m, out] in x's type. Each row
/// of x is rounded to 8 bits with a scale of its own; sums are exact integers. Many rows take a 4-bit weight
/// panel by panel to 8 bits with one scale per output.
at::Tensor low_bit_linear(const at::Tensor& x, const LowBitWeight& weight, const at::Tensor& bias);

}  // namespace glimpse
