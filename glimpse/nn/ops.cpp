#include "glimpse/nn/ops.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>

#include <cmath>
#include <mutex>

#include "glimpse/nn/cuda_ops.h"
#include "glimpse/nn/kernels.h"

namespace glimpse {

bool has_kernel(const at::Tensor& x) {
  return x.device().is_cpu() && (x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kFloat) &&
         !(at::GradMode::is_enabled() && x.requires_grad());
}

namespace {

// Rows per task, so that a task is worth its start (about 16k elements).
int64_t grain(int64_t width) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width));
}

at::Tensor norm_kernel(at::Tensor& x, const at::Tensor& delta, const at::Tensor& weight, double eps) {
  const int64_t width = x.size(-1), rows = x.numel() / std::max<int64_t>(1, width);
  at::Tensor out = at::empty(x.sizes(), x.options());
  with_element(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    T* data = element_data<T>(x);
    const T* add = delta.defined() ? element_data<T>(delta) : nullptr;
    const T* w = element_data<T>(weight);
    T* to = element_data<T>(out);
    at::parallel_for(0, rows, grain(width), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        kernels::rms_norm(data + r * width, add ? add + r * width : nullptr, w, static_cast<float>(eps),
                          width, to + r * width);
    });
  });
  return out;
}

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  if (has_kernel(x) && has_kernel(weight) && weight.scalar_type() == x.scalar_type()) {
    at::Tensor rows = x.contiguous();
    return norm_kernel(rows, {}, weight, eps);
  }
  if (cuda::has_kernel(x, weight)) return cuda::rms_norm(x, weight, eps);
  // Fused with its gradient, so that training is not busy with starting kernels.
  if (x.is_cuda()) return at::rms_norm(x, {x.size(-1)}, weight.to(x.scalar_type()), eps);
  const at::Tensor wide = x.to(at::kFloat);
  return (wide * at::rsqrt(wide.square().mean(-1, true) + eps)).to(x.scalar_type()) * weight;
}

at::Tensor add_rms_norm(at::Tensor& x, const at::Tensor& delta, const at::Tensor& weight, double eps) {
  if (has_kernel(x) && has_kernel(delta) && has_kernel(weight) && x.is_contiguous() &&
      weight.scalar_type() == x.scalar_type())
    return norm_kernel(x, delta.contiguous(), weight, eps);
  if (cuda::has_kernel(x, delta, weight)) return cuda::add_rms_norm(x, delta, weight, eps);
  x = x + delta;
  return rms_norm(x, weight, eps);
}

at::Tensor silu_mul(const at::Tensor& gate, const at::Tensor& up) {
  if (cuda::has_kernel(gate, up)) return cuda::silu_mul(gate, up);
  if (!has_kernel(gate) || !has_kernel(up)) return at::silu(gate) * up;
  const at::Tensor g = gate.contiguous(), u = up.contiguous();
  at::Tensor out = at::empty(g.sizes(), g.options());
  with_element(g.scalar_type(), [&](auto element) {
    using T = decltype(element);
    at::parallel_for(0, g.numel(), 16384, [&](int64_t begin, int64_t end) {
      kernels::silu_mul(element_data<T>(g) + begin, element_data<T>(u) + begin, element_data<T>(out) + begin,
                        end - begin);
    });
  });
  return out;
}

at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps) {
  return at::layer_norm(x, {x.size(-1)}, weight, bias, eps);
}

at::Tensor dropout(const at::Tensor& x, double p) {
  if (!x.is_cpu() || x.scalar_type() != at::kFloat) return at::dropout(x, p, true);
  // ATen draws number by number from a Mersenne twister: a fifth of an adapter's training step. Here the
  // generator gives one number, and SplitMix64 of what is counted from there gives two elements each.
  uint64_t begin;
  {
    auto* generator = at::get_generator_or_default<at::CPUGeneratorImpl>(
        std::nullopt, at::detail::getDefaultCPUGenerator());
    const std::lock_guard lock(generator->mutex_);
    begin = generator->random64();
  }
  const auto below = static_cast<uint32_t>(std::lround(p * 0x1p32));
  const auto scale = static_cast<float>(1 / (1 - p));
  const int64_t count = x.numel();
  at::Tensor factors = at::empty(x.sizes(), x.options());
  float* to = factors.mutable_data_ptr<float>();
  at::parallel_for(0, (count + 1) / 2, 16384, [&](int64_t from, int64_t end) {
    for (int64_t i = from; i < end; ++i) {
      uint64_t z = begin + static_cast<uint64_t>(i) * 0x9e3779b97f4a7c15u;
      z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
      z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
      z ^= z >> 31;
      to[2 * i] = static_cast<uint32_t>(z) < below ? 0 : scale;
      if (2 * i + 1 < count) to[2 * i + 1] = static_cast<uint32_t>(z >> 32) < below ? 0 : scale;
    }
  });
  return x * factors;
}

at::Tensor quick_gelu(const at::Tensor& x) {
  return (1.702 * x).sigmoid_().mul_(x);
}

}  // namespace glimpse
