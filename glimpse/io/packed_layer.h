#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>

#include "glimpse/io/few_bits.h"

namespace glimpse {

/// A linear layer's weight [out, in] as AWQ and GPTQ checkpoints hold it: whole steps of 4 or 8 bits, several
/// to an int32 word, (step - zero) * scale with a zero and a scale per output and group of inputs.
///
/// AWQ ("gemm"): words [in, out / 8] of eight outputs, in the order of kAwqOrder.
/// GPTQ: words [in / per, out] of `per` inputs in order, the first in the lowest bits.
/// Both: zeros [groups, out / per], words of `per` outputs (AWQ: in its order); scales [groups, out].
struct PackedSteps {
  enum class Order { awq, gptq };
  Order order = Order::awq;
  int bits = 4;
  int64_t group = 128;    ///< inputs that share a scale, where `group_of` does not say
  bool less_one = false;  ///< the zeros are stored less one, word by word (GPTQ's first format)
  at::Tensor words, zeros, scales;
  at::Tensor group_of;  ///< [in] int32, the group of each input (GPTQ's g_idx); or undefined

  int64_t per() const { return 32 / bits; }
  int64_t in() const { return words.size(0) * (order == Order::gptq ? per() : 1); }
  int64_t out() const { return words.size(1) * (order == Order::awq ? per() : 1); }
  /// Error, beginning with `what`, unless types and shapes are as said above.
  void check_shapes(const std::string& what) const;
  /// The weight [out, in] in `dtype` (float32, bfloat16 or float16), computed in float32 and rounded once, by
  /// all threads. Error, beginning with `what`, for a scale that is not finite or not above 0 and for a group
  /// that is not there.
  at::Tensor read(at::ScalarType dtype, const std::string& what) const;
  /// The same row by row: as steps where these have 4 bits and neighbouring inputs share scale and zero.
  FewBits few_bits(const std::string& what) const;
};

/// A weight [out, in] in 8-bit floating point (e4m3), times a scale per block of block_out x block_in.
struct Fp8Blocks {
  int64_t block_out = 0, block_in = 0;
  at::Tensor weight, scales;  ///< scales: one per block, row by row

  void check_shapes(const std::string& what) const;
  /// As PackedSteps::read; Error also for a weight that is not a number.
  at::Tensor read(at::ScalarType dtype, const std::string& what) const;
};

}  // namespace glimpse
