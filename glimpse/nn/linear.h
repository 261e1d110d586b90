#pragma once

#include <ATen/ATen.h>

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "glimpse/io/checkpoint.h"
#include "glimpse/nn/low_bit.h"

namespace glimpse {

/// A low-rank branch beside a Linear: scale * dropout(x) A^T B^T, computed in the type of A and B.
struct Lora {
  at::Tensor a;  ///< [r, in]
  at::Tensor b;  ///< [out, r]
  double scale = 1;
  double dropout = 0;  ///< probability, only where gradients are recorded or under a DropoutGuard
};

/// While it lives, branches that run on this thread drop (Lora::dropout) though no gradients are recorded, as
/// where answers are drawn in training (method.md section 6).
class DropoutGuard {
 public:
  explicit DropoutGuard(bool on);
  ~DropoutGuard();
  DropoutGuard(const DropoutGuard&) = delete;

 private:
  const bool before_;
};

/// y = x W^T + b, plus the branch if there is one. The weight is held once, as the checkpoint stores it, so a
/// memory-mapped file stays mapped; or in 8 or 4 bits.
struct Linear {
  at::Tensor weight;  ///< [out, in]; undefined if `low_bit` holds it
  at::Tensor bias;    ///< [out], or undefined
  std::shared_ptr<const Lora> lora = nullptr;
  std::shared_ptr<const LowBitWeight> low_bit = nullptr;

  /// x [..., in] -> [..., out], in x's type.
  at::Tensor operator()(const at::Tensor& x) const;
};

/// Several layers of the same x [..., in]: out[i] = (*layers[i])(x), but x is prepared once, and the work of
/// all is shared among the threads together.
void linears_into(std::span<at::Tensor> out, const at::Tensor& x, std::span<const Linear* const> layers);
template <class... Layers>
std::array<at::Tensor, sizeof...(Layers)> linears(const at::Tensor& x, const Layers&... layers) {
  std::array<at::Tensor, sizeof...(Layers)> out;
  linears_into(out, x, std::array<const Linear*, sizeof...(Layers)>{&layers...});
  return out;
}

inline at::Tensor Linear::operator()(const at::Tensor& x) const {
  return linears(x, *this)[0];
}

/// How linear layers hold the weights that they take from a checkpoint.
struct WeightOptions {
  enum class Format { stored, plain, int8, int4 };
  Format format = Format::stored;  ///< stored: as they are
  int64_t group = default_group;   ///< of 4-bit weights that are made here
  /// Whether, on the CPU, `stored` takes layers that others' formats store in few bits (Weights::few_bits)
  /// without widening them (keep_few_bits).
  bool keep = true;
  /// Such layers as an earlier run made them, by the names that a quantised checkpoint has for them, or null.
  std::shared_ptr<const Weights> packed = nullptr;
  /// Called with every weight that was rounded or kept in few bits, and its layer's name.
  std::function<void(const std::string& name, const LowBitWeight& weight)> on_rounded;
};

/// The layer called `name` [out, in]: `name`.weight and, if there is one, `name`.bias. Tensors of 8 and 4
/// bits are recognised by their type and come with `name`.weight_scale, `name`.weight_correction and, in 4
/// bits, `name`.weight_multiple. Error when a tensor has another shape or the checkpoint's bits are not those
/// asked for.
Linear take_linear(const Weights& weights, const std::string& name, int64_t out, int64_t in, bool bias,
                   at::TensorOptions options, const WeightOptions& how);
/// The weight of the layer called `name` where `how` says to keep what `tensor` of the checkpoint has in few
/// bits; else null.
std::shared_ptr<const LowBitWeight> kept_weight(const Weights& weights, const std::string& name,
                                                const std::string& tensor, int64_t out, int64_t in,
                                                at::TensorOptions options, const WeightOptions& how);
/// Whether `how` keeps tensors that are stored in few bits on this device.
bool keeps_few_bits(at::TensorOptions options, const WeightOptions& how);
/// A plain layer as `how` asks for it; `name`d in errors.
Linear as_asked(Linear layer, const std::string& name, const WeightOptions& how);

/// A plain layer with zeros for more outputs and inputs, up to `out` and `in`.
Linear padded(const Linear& layer, int64_t out, int64_t in);

/// How many-row bf16 products (linear layers, flash attention) run on this CPU: by libtorch, which uses AMX;
/// in pairs (nn/gemm.h) where bf16 dot products beat float32 FMA; else widened to float32, panel by panel.
enum class GemmPath { native, widened, paired };
GemmPath bf16_gemm_path();
/// Forces a path (for tests and measurements); nothing given: the CPU's own again.
void force_bf16_gemm_path(std::optional<GemmPath> path);

}  // namespace glimpse
