#pragma once

#include <ATen/ATen.h>

#include <span>
#include <vector>

namespace glimpse {

/// A linear layer's weight [out, in] in 8 bits with one scale per output, or in 4 bits with a whole multiple
/// of that scale per group of inputs, in the layout its kernels read (nn/low_bit_kernels.h), so that a mapped
/// file needs no packing. A 4-bit weight times its multiple has 8 bits, so both kinds are whole numbers times
/// the output's scale.
struct LowBitWeight {
  int64_t out = 0, in = 0;
  int64_t group = 0;      ///< inputs that share a multiple; 0: 8 bits, without
  at::Tensor data;        ///< int8: [blocks, quads, 16, 4]; uint8: [blocks, quads / 2, 16, 4]
  at::Tensor scale;       ///< float32 [16 * blocks]
  at::Tensor correction;  ///< what the offset of the activations adds: int32 [16 * blocks]
  at::Tensor multiple;    ///< 4 bits: int8 [blocks, groups, 16], from -15 to 15

  int bits() const { return group ? 4 : 8; }
  /// The weight as it is used: [out, in] float32.
  at::Tensor dequantised() const;
};

/// Inputs per multiple in 4 bits, unless asked otherwise.
inline constexpr int64_t default_group = 64;

/// Rounds weight [out, in] (bf16 or float32, on the CPU) to 8 bits (`group` 0) or 4 bits (`group` 32 or 64).
LowBitWeight quantise_weight(const at::Tensor& weight, int64_t group);

/// A weight and, perhaps, a bias [out].
struct LowBitFactor {
  const LowBitWeight* weight;
  at::Tensor bias;
};

/// Products of x [m, in] (bf16 or float32) with several weights: [m, out] each, in x's type. Each row of x is
/// rounded to 8 bits with a scale of its own, once for all; sums are exact integers, so a row's result is the
/// same whichever rows it is computed with.
std::vector<at::Tensor> low_bit_products(const at::Tensor& x, std::span<const LowBitFactor> factors);

}  // namespace glimpse
