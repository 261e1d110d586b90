#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <span>
#include <vector>

#include "glimpse/io/few_bits.h"

namespace glimpse {

/// A linear layer's weight [out, in] in the layout its kernels read (nn/low_bit_kernels.h,
/// nn/step_kernels.h), so that a mapped file needs no packing. Rounded here: 8 bits with one scale per
/// output, or 4 bits with a whole multiple of that scale per group of inputs; a 4-bit weight times its
/// multiple has 8 bits, so both are whole numbers times the output's scale. As another program rounded it
/// (`is_stepped`): 4 bits that stand for steps from a zero of the group's own, times a scale of its own.
struct LowBitWeight {
  int64_t out = 0, in = 0;
  int64_t group = 0;      ///< inputs that share a multiple, or scale and zero; 0: 8 bits, without
  at::Tensor data;        ///< int8: [blocks, quads, 16, 4]; uint8: [blocks, quads / 2, 16, 4]
  at::Tensor scale;       ///< float32 [16 * blocks]
  at::Tensor correction;  ///< what the offset of the activations adds: int32 [16 * blocks]; none for steps
  at::Tensor multiple;    ///< 4 bits: int8 [blocks, groups, 16], from -15 to 15; steps: scale and zero of
                          ///< each group, float16 [blocks, groups, 2, 16]
  at::Tensor table = {};  ///< steps: uint8 [16], what they stand for; undefined: themselves

  int bits() const { return group ? 4 : 8; }
  bool is_stepped() const { return multiple.defined() && multiple.scalar_type() == at::kHalf; }
  /// The weight as it is used: [out, in] float32.
  at::Tensor dequantised() const;
};

/// Inputs per multiple in 4 bits, unless asked otherwise.
inline constexpr int64_t default_group = 64;

/// Rounds weight [out, in] (bf16 or float32, on the CPU) to 8 bits (`group` 0) or 4 bits (`group` 32 or 64).
LowBitWeight quantise_weight(const at::Tensor& weight, int64_t group);

/// The same of rows that are read some at a time, in float32, by all threads.
LowBitWeight quantise_rows(int64_t out, int64_t in, int64_t group,
                           const std::function<at::Tensor(int64_t first, int64_t count)>& read);

/// A weight that is stored in few bits: its steps where it has them, else rounded to 8 bits.
///
/// Steps keep their values but for what float16 rounds off a group's scale, and its zero in steps: at most
/// 2^-11 of either, and nothing where they have no more digits, as in Q4_0, IQ4_NL, AWQ and GPTQ.
LowBitWeight keep_few_bits(int64_t out, int64_t in, const FewBits& from);

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
