#pragma once

#include "glimpse/nn/low_bit.h"

namespace glimpse {

/// Packs a weight whose steps are stored (LowBitWeight::is_stepped). Each row gets a power of two as scale,
/// so that float16 holds the scales of its groups with all their digits.
LowBitWeight pack_steps(int64_t out, int64_t in, const FewBits& from);
/// What such a weight stands for: [out, in] float32.
at::Tensor read_steps(const LowBitWeight& weight);

}  // namespace glimpse
