#include "glimpse/nn/rotary.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <map>
#include <mutex>
#include <string>
#include <tuple>

#include "glimpse/nn/cuda_ops.h"
#include "glimpse/nn/kernels.h"
#include "glimpse/nn/ops.h"

namespace glimpse {

at::Tensor inverse_frequencies(int64_t dim, double theta) {
  // Exponents in float32, as the reference computes them.
  const at::Tensor exponent = at::arange(0, dim, 2, at::kFloat) / static_cast<double>(dim);
  return at::reciprocal(at::pow(theta, exponent));
}

at::Tensor inverse_frequencies(int64_t dim, double theta, at::Device device) {
  if (device.is_cpu()) return inverse_frequencies(dim, theta);
  static std::mutex mutex;
  static std::map<std::tuple<int64_t, double, std::string>, at::Tensor> made;
  const std::lock_guard lock(mutex);
  at::Tensor& kept = made[{dim, theta, device.str()}];
  if (!kept.defined()) kept = inverse_frequencies(dim, theta).to(device);
  return kept;
}

Rope rope_from_angles(const at::Tensor& angles) {
  return {angles.cos().contiguous(), angles.sin().contiguous()};
}

Rope rope_tables(const at::Tensor& positions, int64_t head_dim, double theta) {
  const at::Tensor frequencies = inverse_frequencies(head_dim, theta, positions.device());
  return rope_from_angles(at::outer(positions.to(at::kFloat), frequencies));
}

namespace {

at::Tensor rotated(const at::Tensor& x, const Rope& rope);

// With gradients: what turns back is the rotation by the opposite angles.
struct Rotation : torch::autograd::Function<Rotation> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& cos, const at::Tensor& sin) {
    context->save_for_backward({cos, sin});
    return rotated(x.detach().clone(at::MemoryFormat::Contiguous), {cos, sin});
  }
  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* context,
                                               const torch::autograd::tensor_list& gradients) {
    const auto saved = context->get_saved_variables();
    return {rotated(gradients[0].clone(at::MemoryFormat::Contiguous), {saved[0], saved[1].neg()}), {}, {}};
  }
};

at::Tensor rotated(const at::Tensor& x, const Rope& rope) {
  const int64_t tokens = x.size(0), heads = x.size(1), half = x.size(2) / 2;
  if (has_kernel(x) && x.is_contiguous()) {
    const float* cos = rope.cos.const_data_ptr<float>();
    const float* sin = rope.sin.const_data_ptr<float>();
    with_element(x.scalar_type(), [&](auto element) {
      auto* data = element_data<decltype(element)>(x);
      at::parallel_for(
          0, tokens, std::max<int64_t>(1, 16384 / (heads * half)), [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; ++t)
              for (int64_t h = 0; h < heads; ++h)
                kernels::rotate(data + (t * heads + h) * 2 * half, cos + t * half, sin + t * half, half);
          });
    });
    return x;
  }
  if (cuda::has_kernel(x)) return cuda::apply_rope(x, {rope.cos.contiguous(), rope.sin.contiguous()});
  const at::Tensor wide = x.to(at::kFloat), a = wide.narrow(-1, 0, half), b = wide.narrow(-1, half, half);
  const at::Tensor cos = rope.cos.unsqueeze(1), sin = rope.sin.unsqueeze(1);
  return at::cat({a * cos - b * sin, b * cos + a * sin}, -1).to(x.scalar_type());
}

}  // namespace

at::Tensor apply_rope(const at::Tensor& x, const Rope& rope) {
  return at::GradMode::is_enabled() && x.requires_grad() ? Rotation::apply(x, rope.cos, rope.sin)
                                                         : rotated(x, rope);
}

}  // namespace glimpse
