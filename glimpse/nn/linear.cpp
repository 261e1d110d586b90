#include "glimpse/nn/linear.h"

#include <ATen/Parallel.h>
#include <cpuid.h>

#include "glimpse/nn/kernels.h"
#include "glimpse/nn/ops.h"

namespace glimpse {

namespace {

bool cpu_has_amx_bf16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & (1u << 22));
}

// Few rows: every weight is read once at memory speed.
at::Tensor few_rows(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  const int64_t m = x.size(0), k = x.size(1), n = weight.size(0);
  const at::Tensor wide = x.to(at::kFloat).contiguous();
  at::Tensor sums = at::empty({m, n}, wide.options());
  with_element(weight.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const T* w = element_data<T>(weight);
    at::parallel_for(0, n, std::max<int64_t>(1, 65536 / k), [&](int64_t begin, int64_t end) {
      kernels::dots(wide.const_data_ptr<float>(), m, k, w, begin, end, sums.data_ptr<float>(), n);
    });
  });
  if (bias.defined()) sums += bias;
  return sums.to(x.scalar_type());
}

// Many rows, float32 arithmetic: panels of the weight are widened into a buffer that stays in the cache.
at::Tensor widened(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  const int64_t m = x.size(0), k = x.size(1), n = weight.size(0);
  const int64_t panel = std::min(std::max<int64_t>((1 << 20) / k, 128), n);
  const at::Tensor wide = x.to(at::kFloat);
  at::Tensor out = at::empty({m, n}, x.options());
  at::Tensor buffer = at::empty({panel, k}, wide.options()), sums = at::empty({m, panel}, wide.options());
  const at::Tensor wide_bias = bias.defined() ? bias.to(at::kFloat) : bias;
  const auto* from = element_data<kernels::bf16>(weight);
  auto* to = element_data<kernels::bf16>(out);
  for (int64_t start = 0; start < n; start += panel) {
    const int64_t rows = std::min(panel, n - start);
    at::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
      kernels::widen(from + (start + begin) * k, buffer.data_ptr<float>() + begin * k, (end - begin) * k);
    });
    at::Tensor part = sums.narrow(1, 0, rows);
    const at::Tensor columns = buffer.narrow(0, 0, rows).t();
    if (wide_bias.defined())
      at::addmm_out(part, wide_bias.narrow(0, start, rows), wide, columns);
    else
      at::mm_out(part, wide, columns);
    at::parallel_for(0, m, 64, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        kernels::narrow(sums.const_data_ptr<float>() + r * panel, to + r * n + start, rows);
    });
  }
  return out;
}

}  // namespace

GemmPath bf16_gemm_path() {
  // Measured: AMD Zen 4/5 runs bf16 dot products at twice the float32 rate, Intel without AMX at half of it.
  static const GemmPath path = cpu_has_amx_bf16() || (__builtin_cpu_is("amd") && __builtin_cpu_supports("avx512bf16"))
                                   ? GemmPath::native
                                   : GemmPath::widened;
  return path;
}

at::Tensor Linear::operator()(const at::Tensor& x) const {
  const bool kernel = has_kernel(x) && has_kernel(weight) && weight.is_contiguous();
  const bool same = x.scalar_type() == weight.scalar_type();
  if (!kernel || !same) return at::linear(x, weight, bias);
  const at::Tensor rows = x.reshape({-1, x.size(-1)});
  auto sizes = x.sizes().vec();
  sizes.back() = weight.size(0);
  if (rows.size(0) > 0 && rows.size(0) <= kernels::max_rows) return few_rows(rows, weight, bias).view(sizes);
  if (x.scalar_type() == at::kBFloat16 && bf16_gemm_path() == GemmPath::widened && rows.size(0) > 0)
    return widened(rows, weight, bias).view(sizes);
  return at::linear(x, weight, bias);
}

}  // namespace glimpse
