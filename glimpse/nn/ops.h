#pragma once

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

namespace glimpse {

/// Small fused operations. On CPU (bf16, f32) without autograd one pass over the rows; elsewhere (CUDA,
/// autograd, other types) the same mathematics in ATen operations.

/// RMSNorm over the last dimension: x [..., D], weight [D]; mean in float32, result in x's type.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

/// The residual step and the norm after it: x becomes x + delta (in place without autograd), returns
/// rms_norm(x + delta).
at::Tensor add_rms_norm(at::Tensor& x, const at::Tensor& delta, const at::Tensor& weight, double eps);

/// silu(gate) * up, elementwise.
at::Tensor silu_mul(const at::Tensor& gate, const at::Tensor& up);

/// LayerNorm over the last dimension: x [..., D], weight and bias [D].
at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps);

/// x * sigmoid(1.702 x), elementwise.
at::Tensor quick_gelu(const at::Tensor& x);

/// Zeros with probability p, the others times 1 / (1 - p); draws from the device's default generator.
at::Tensor dropout(const at::Tensor& x, double p);

/// Whether the CPU kernels of nn/kernels.h can take `x`.
bool has_kernel(const at::Tensor& x);

/// Calls f(T{}) with T = kernels::bf16 or float, whichever `type` is.
template <class Function>
void with_element(at::ScalarType type, Function f) {
  if (type == at::kBFloat16)
    f(uint16_t{});
  else
    f(float{});
}

/// The data of a contiguous bf16 or f32 tensor as the type that with_element gave.
template <class T>
T* element_data(const at::Tensor& x) {
  return static_cast<T*>(x.data_ptr());
}

}  // namespace glimpse
