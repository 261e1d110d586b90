#include "glimpse/nn/linear.h"

#include <ATen/core/grad_mode.h>
#include <cpuid.h>

#include <algorithm>
#include <utility>

#include "glimpse/base/check.h"
#include "glimpse/nn/cuda_ops.h"
#include "glimpse/nn/dense.h"
#include "glimpse/nn/flop_count.h"
#include "glimpse/nn/gemm.h"
#include "glimpse/nn/kernels.h"
#include "glimpse/nn/ops.h"

namespace glimpse {

namespace {

std::optional<GemmPath> forced_path;

bool cpu_has_amx_bf16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & (1u << 22));
}

LowBitWeight take_low_bit(const Weights& weights, const std::string& name, int64_t out, int64_t in) {
  const std::string weight = name + ".weight";
  const int64_t blocks = (out + 15) / 16;
  const auto take = [&](const char* suffix, at::IntArrayRef shape, at::ScalarType type) {
    return weights.take(weight + suffix, shape, at::TensorOptions(type));
  };
  LowBitWeight to{out, in, 0, {}, take("_scale", {blocks * 16}, at::kFloat), {}, {}};
  const auto take_correction = [&] { to.correction = take("_correction", {blocks * 16}, at::kInt); };
  if (weights.dtype(weight) == at::kChar) {
    to.data = take("", {blocks, (in + 3) / 4, 16, 4}, at::kChar);
    take_correction();
    return to;
  }
  const at::Tensor multiples = weights.raw(weight + "_multiple"), data = weights.raw(weight);
  const bool stepped = multiples.scalar_type() == at::kHalf;
  const int64_t groups = multiples.dim() == (stepped ? 4 : 3) ? multiples.size(1) : 0;
  to.group = groups > 0 && data.dim() == 4 ? data.size(1) * 8 / groups : 0;
  check(stepped ? to.group > 0 && to.group % 8 == 0 : to.group == 32 || to.group == 64, "tensor '", weight,
        "_multiple' does not fit '", weight, "': expected one number per 32 or 64 inputs, or two per group");
  const int64_t expected = (in + to.group - 1) / to.group;
  to.data = take("", {blocks, expected * to.group / 8, 16, 4}, at::kByte);
  if (stepped) {
    to.multiple = take("_multiple", {blocks, expected, 2, 16}, at::kHalf);
    if (weights.contains(weight + "_table")) to.table = take("_table", {16}, at::kByte);
    return to;
  }
  take_correction();
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

bool keeps_few_bits(at::TensorOptions options, const WeightOptions& how) {
  return how.format == WeightOptions::Format::stored && how.keep &&
         (!options.has_device() || options.device().is_cpu());
}

std::shared_ptr<const LowBitWeight> kept_weight(const Weights& weights, const std::string& name,
                                                const std::string& tensor, int64_t out, int64_t in,
                                                at::TensorOptions options, const WeightOptions& how) {
  if (!keeps_few_bits(options, how)) return nullptr;
  const FewBits* stored = weights.take_few_bits(tensor, {out, in});
  if (!stored) return nullptr;
  if (how.packed && how.packed->contains(name + ".weight"))
    return std::make_shared<LowBitWeight>(take_low_bit(*how.packed, name, out, in));
  auto kept = std::make_shared<LowBitWeight>(keep_few_bits(out, in, *stored));
  weights.release(tensor);
  if (how.on_rounded) how.on_rounded(name, *kept);
  return kept;
}

Linear take_linear(const Weights& weights, const std::string& name, int64_t out, int64_t in, bool bias,
                   at::TensorOptions options, const WeightOptions& how) {
  using enum WeightOptions::Format;
  const std::string weight = name + ".weight";
  const at::Tensor offset = bias ? weights.take(name + ".bias", {out}, options) : at::Tensor();
  if (auto kept = kept_weight(weights, name, weight, out, in, options, how))
    return {{}, offset, nullptr, std::move(kept)};
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

Linear padded(const Linear& layer, int64_t out, int64_t in) {
  const int64_t more = out - layer.weight.size(0);
  Linear wide = layer;
  wide.weight = at::constant_pad_nd(layer.weight, {0, in - layer.weight.size(1), 0, more});
  if (layer.bias.defined()) wide.bias = at::constant_pad_nd(layer.bias, {0, more});
  return wide;
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

namespace {

// Whether our kernels can multiply rows x [m, in] with a plain weight.
bool has_dense_kernel(const at::Tensor& x, const Linear& layer) {
  if (layer.low_bit || !has_kernel(x) || !has_kernel(layer.weight) || !layer.weight.is_contiguous() ||
      layer.weight.scalar_type() != x.scalar_type())
    return false;
  if (layer.bias.defined() && (layer.bias.scalar_type() != x.scalar_type() || !layer.bias.is_contiguous()))
    return false;
  const bool panels = x.scalar_type() == at::kBFloat16 && bf16_gemm_path() != GemmPath::native;
  return panels || (x.size(0) > 0 && x.size(0) <= kernels::max_rows);
}

std::vector<DenseWeight> dense_weights(std::span<const Linear* const> layers) {
  std::vector<DenseWeight> weights;
  for (const Linear* layer : layers) weights.push_back({layer->weight, layer->bias});
  return weights;
}

std::vector<at::Tensor> products(const at::Tensor& x, std::span<const Linear* const> layers) {
  const auto all = [&](const auto& is) { return std::all_of(layers.begin(), layers.end(), is); };
  if (all([](const Linear* layer) { return layer->low_bit != nullptr; })) {
    check(!at::GradMode::is_enabled() || !x.requires_grad(), "weights of ", layers[0]->low_bit->bits(),
          " bits cannot be trained through; load the model in bf16 or fp32");
    std::vector<LowBitFactor> factors;
    for (const Linear* layer : layers) factors.push_back({layer->low_bit.get(), layer->bias});
    return low_bit_products(x, factors);
  }
  if (all([&](const Linear* layer) { return has_dense_kernel(x, *layer); })) {
    const bool pairs = x.scalar_type() == at::kBFloat16 && bf16_gemm_path() == GemmPath::paired;
    return dense_products(x, dense_weights(layers), pairs);
  }
  if (all([&](const Linear* layer) {
        return !layer->low_bit && cuda::has_few_row_kernel(x, layer->weight, layer->bias);
      }))
    return cuda::few_row_products(x, dense_weights(layers));
  if (layers.size() == 1) return {at::linear(x, layers[0]->weight, layers[0]->bias)};
  std::vector<at::Tensor> out;
  for (const Linear* layer : layers) out.push_back(products(x, {&layer, 1})[0]);
  return out;
}

thread_local bool drops_anyway = false;

at::Tensor lora_branch(const at::Tensor& x, const Lora& lora) {
  at::Tensor rows = x.to(lora.a.scalar_type());
  if (lora.dropout > 0 && (at::GradMode::is_enabled() || drops_anyway)) rows = dropout(rows, lora.dropout);
  return at::linear(at::linear(rows, lora.a) * lora.scale, lora.b);
}

}  // namespace

DropoutGuard::DropoutGuard(bool on) : before_(std::exchange(drops_anyway, on)) {}

DropoutGuard::~DropoutGuard() {
  drops_anyway = before_;
}

void linears_into(std::span<at::Tensor> out, const at::Tensor& x, std::span<const Linear* const> layers) {
  const std::vector<at::Tensor> all = products(x.reshape({-1, x.size(-1)}), layers);
  for (size_t i = 0; i < layers.size(); ++i) {
    auto sizes = x.sizes().vec();
    sizes.back() = all[i].size(1);
    out[i] = all[i].view(sizes);
    flop_count::add(2 * x.numel() * sizes.back());
    // Added before rounding, as PEFT does.
    if (layers[i]->lora) out[i] = (out[i] + lora_branch(x, *layers[i]->lora)).to(out[i].scalar_type());
  }
}

}  // namespace glimpse
