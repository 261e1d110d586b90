#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <optional>

namespace glimpse {

/// A low-rank branch beside a Linear: scale * dropout(x) A^T B^T, computed in the type of A and B.
struct Lora {
  at::Tensor a;  ///< [r, in]
  at::Tensor b;  ///< [out, r]
  double scale = 1;
  double dropout = 0;  ///< probability; nothing is dropped where no gradients are recorded
};

/// y = x W^T + b, plus the branch if there is one. The weight is held once, as the checkpoint stores it, so a
/// memory-mapped file stays mapped.
struct Linear {
  at::Tensor weight;  ///< [out, in]
  at::Tensor bias;    ///< [out], or undefined
  std::shared_ptr<const Lora> lora = nullptr;

  /// x [..., in] -> [..., out], in x's type.
  at::Tensor operator()(const at::Tensor& x) const;
};

/// How many-row bf16 products run on this CPU. Where bf16 dot products are slower than float32 FMA (CPUs
/// without AMX whose AVX-512 BF16 runs at half rate, and those without it) weights are widened panel by panel
/// instead.
enum class GemmPath { native, widened };
GemmPath bf16_gemm_path();
/// Forces a path (for tests and measurements); nothing given: the CPU's own again.
void force_bf16_gemm_path(std::optional<GemmPath> path);

}  // namespace glimpse
