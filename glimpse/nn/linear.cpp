#include "glimpse/nn/linear.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <cpuid.h>

#include "glimpse/base/check.h"
#include "glimpse/nn/flop_count.h"
#include "glimpse/nn/gemm.h"
#include "glimpse/nn/kernels.h"
#include "glimpse/nn/ops.h"
#include "glimpse/nn/parallel.h"

namespace glimpse {

namespace {

std::optional<GemmPath> forced_path;

bool cpu_has_amx_bf16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & (1u << 22));
}

// Few rows: every weight is read once at memory speed.
at::Tensor few_rows(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, bool pairs) {
  const int64_t m = x.size(0), k = x.size(1), n = weight.size(0);
  const at::Tensor rows = (pairs ? x : x.to(at::kFloat)).contiguous();
  at::Tensor sums = at::empty({m, n}, x.options().dtype(at::kFloat));
  const int64_t chunk = std::max<int64_t>(8, 262144 / std::max<int64_t>(k, 1) / 8 * 8);
  const auto run = [&](const auto* from, const auto* w) {
    parallel_tasks((n + chunk - 1) / chunk, [&](int64_t i) {
      kernels::dots(from, m, k, w, i * chunk, std::min((i + 1) * chunk, n), sums.data_ptr<float>(), n);
    });
  };
  if (pairs)
    run(element_data<kernels::bf16>(rows), element_data<kernels::bf16>(weight));
  else
    with_element(weight.scalar_type(), [&](auto element) {
      run(element_data<float>(rows), element_data<decltype(element)>(weight));
    });
  if (bias.defined()) sums += bias;
  return sums.to(x.scalar_type());
}

// Many rows of bf16 matrices (nn/gemm.h).
at::Tensor many_rows(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, bool pairs) {
  const int64_t m = x.size(0), k = x.size(1), n = weight.size(0);
  const at::Tensor rows = x.contiguous(), wide_bias = bias.defined() ? bias.to(at::kFloat) : bias;
  const at::TensorOptions wide = x.options().dtype(at::kFloat);
  at::Tensor packed = at::empty({gemm::packed_size(m, k, pairs)}, wide);
  at::Tensor out = at::empty({m, n}, x.options());
  const int64_t blocks = (m + gemm::block_rows() - 1) / gemm::block_rows();
  float* const to = packed.data_ptr<float>();
  at::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
    gemm::pack(element_data<gemm::bf16>(rows), m, k, first, last, pairs, to);
  });
  // Tasks are panels of columns, cut along the rows too so that narrow products use every core.
  const int64_t most = std::max<int64_t>(1, 544 / gemm::block_rows()), parts = (blocks + most - 1) / most,
                height = (blocks + parts - 1) / parts;
  const int64_t across = (n + gemm::panel_columns - 1) / gemm::panel_columns,
                down = (blocks + height - 1) / height;
  parallel_tasks(across * down, [&](int64_t task) {
    thread_local std::vector<float> scratch;
    scratch.resize(gemm::scratch_size(height * gemm::block_rows()));
    const int64_t column = task / down * gemm::panel_columns, first = task % down * height;
    gemm::panel(to, m, k, first, std::min(first + height, blocks), element_data<gemm::bf16>(weight),
                wide_bias.defined() ? wide_bias.const_data_ptr<float>() : nullptr, column,
                std::min(column + gemm::panel_columns, n), n, pairs, element_data<gemm::bf16>(out),
                scratch.data());
  });
  return out;
}

at::Tensor dense(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  const bool kernel = has_kernel(x) && has_kernel(weight) && weight.is_contiguous();
  const bool same = x.scalar_type() == weight.scalar_type();
  if (!kernel || !same) return at::linear(x, weight, bias);
  const at::Tensor rows = x.reshape({-1, x.size(-1)});
  auto sizes = x.sizes().vec();
  sizes.back() = weight.size(0);
  const bool bf16 = x.scalar_type() == at::kBFloat16, some = rows.size(0) > 0;
  const GemmPath path = bf16_gemm_path();
  const bool pairs = bf16 && path == GemmPath::paired;
  if (some && rows.size(0) <= kernels::max_rows) return few_rows(rows, weight, bias, pairs).view(sizes);
  if (some && bf16 && path != GemmPath::native) return many_rows(rows, weight, bias, pairs).view(sizes);
  return at::linear(x, weight, bias);
}

at::Tensor packed(const at::Tensor& x, const LowBitWeight& weight, const at::Tensor& bias) {
  check(!at::GradMode::is_enabled() || !x.requires_grad(), "weights of ", weight.bits(),
        " bits cannot be trained through; load the model in bf16 or fp32");
  auto sizes = x.sizes().vec();
  sizes.back() = weight.out;
  return low_bit_linear(x.reshape({-1, x.size(-1)}), weight, bias).view(sizes);
}

LowBitWeight take_low_bit(const Weights& weights, const std::string& name, int64_t out, int64_t in) {
  const std::string weight = name + ".weight";
  const int64_t blocks = (out + 15) / 16;
  const auto take = [&](const char* suffix, at::IntArrayRef shape, at::ScalarType type) {
    return weights.take(weight + suffix, shape, at::TensorOptions(type));
  };
  LowBitWeight to{out, in, 0, {}, take("_scale", {blocks * 16}, at::kFloat),
                  take("_correction", {blocks * 16}, at::kInt), {}};
  if (weights.dtype(weight) == at::kChar) {
    to.data = take("", {blocks, (in + 3) / 4, 16, 4}, at::kChar);
    return to;
  }
  const at::Tensor multiples = weights.raw(weight + "_multiple"), data = weights.raw(weight);
  const int64_t groups = multiples.dim() == 3 ? multiples.size(1) : 0;
  to.group = groups > 0 && data.dim() == 4 ? data.size(1) * 8 / groups : 0;
  check(to.group == 32 || to.group == 64, "tensor '", weight, "_multiple' does not fit '", weight,
        "': expected one number per 32 or 64 inputs");
  const int64_t expected = (in + to.group - 1) / to.group;
  to.data = take("", {blocks, expected * to.group / 8, 16, 4}, at::kByte);
  to.multiple = take("_multiple", {blocks, expected, 16}, at::kChar);
  return to;
}

}  // namespace

Linear as_asked(Linear layer, const std::string& name, const WeightOptions& how) {
  using enum WeightOptions::Format;
  if (how.format == stored || how.format == WeightOptions::Format::plain) return layer;
  check(layer.weight.device().is_cpu(), "weights of 8 and 4 bits run on the CPU only");
  const auto low_bit =
      std::make_shared<LowBitWeight>(quantise_weight(layer.weight, how.format == int8 ? 0 : how.group));
  if (how.on_rounded) how.on_rounded(name, *low_bit);
  return {{}, layer.bias, nullptr, low_bit};
}

Linear take_linear(const Weights& weights, const std::string& name, int64_t out, int64_t in, bool bias,
                   at::TensorOptions options, const WeightOptions& how) {
  using enum WeightOptions::Format;
  const std::string weight = name + ".weight";
  const at::Tensor offset = bias ? weights.take(name + ".bias", {out}, options) : at::Tensor();
  const bool is_low_bit = weights.contains(weight) && !at::isFloatingType(weights.dtype(weight));
  if (!is_low_bit) {
    Linear layer = as_asked({weights.take(weight, {out, in}, options), offset}, name, how);
    if (layer.low_bit) weights.release(weight);
    return layer;
  }
  check(!options.has_device() || options.device().is_cpu(), "weights of 8 and 4 bits run on the CPU only");
  auto low_bit = std::make_shared<LowBitWeight>(take_low_bit(weights, name, out, in));
  check(how.format == stored || how.format == (low_bit->group ? int4 : int8), "tensor '", weight, "' has ",
        low_bit->bits(), " bits already; it can be used as it is (--weights auto), not in another format");
  return {{}, offset, nullptr, low_bit};
}

GemmPath bf16_gemm_path() {
  // Measured: AMD Zen 4/5 runs bf16 dot products at twice the float32 rate, Intel without AMX at half of it.
  static const bool amx = cpu_has_amx_bf16(), amd = __builtin_cpu_is("amd");
  if (forced_path) return *forced_path;
  if (amx) return GemmPath::native;
  return amd && gemm::has_pairs() ? GemmPath::paired : GemmPath::widened;
}

void force_bf16_gemm_path(std::optional<GemmPath> path) {
  forced_path = path;
}

at::Tensor Linear::operator()(const at::Tensor& x) const {
  flop_count::add(2 * x.numel() * (low_bit ? low_bit->out : weight.size(0)));
  at::Tensor y = low_bit ? packed(x, *low_bit, bias) : dense(x, weight, bias);
  if (!lora) return y;
  at::Tensor rows = x.to(lora->a.scalar_type());
  if (lora->dropout > 0 && at::GradMode::is_enabled()) rows = at::dropout(rows, lora->dropout, true);
  const at::Tensor branch = at::linear(at::linear(rows, lora->a), lora->b) * lora->scale;
  return (y + branch).to(y.scalar_type());  // added before rounding, as PEFT does
}

}  // namespace glimpse
