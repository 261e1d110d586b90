#include "glimpse/models/qwen2_5_vit.h"

#include <algorithm>

#include "glimpse/base/check.h"
#include "glimpse/nn/ops.h"

namespace glimpse {

namespace {
constexpr double kNormEps = 1e-6;
}

Qwen25Vit Qwen25Vit::load(const nlohmann::json& c, const Weights& weights, at::TensorOptions options,
                          const WeightOptions& how) {
  Qwen25Vit vit;
  const auto number = [&](const char* key, int64_t fallback) {
    const int64_t value = c.value(key, fallback);
    check(value > 0 && value < (1 << 24), "vision_config: ", key, " is ", value);
    return value;
  };
  QwenVitShape& shape = vit.shape_;
  const int64_t d = shape.hidden = number("hidden_size", 1280), ff = number("intermediate_size", 3420);
  const int64_t patch = number("patch_size", 14), out = number("out_hidden_size", 3584);
  const int64_t temporal = number("temporal_patch_size", 2);
  shape.depth = number("depth", 32);
  shape.heads = number("num_heads", 16);
  shape.merge = number("spatial_merge_size", 2);
  shape.window_tokens = number("window_size", 112) / shape.merge / patch;
  const auto full = c.value("fullatt_block_indexes", std::vector<int64_t>{7, 15, 23, 31});
  check(d % shape.heads == 0 && (d / shape.heads) % 4 == 0 && shape.window_tokens > 0,
        "vision_config: hidden_size ", d, ", num_heads ", shape.heads,
        " and window_size do not fit together");

  const auto linear = [&](const std::string& name, int64_t rows, int64_t cols) {
    return take_linear(weights, name, rows, cols, true, options, how);
  };
  vit.patch_embed_.weight =
      weights.take("visual.patch_embed.proj.weight", {d, 3, temporal, patch, patch}, options).flatten(1);
  for (int64_t i = 0; i < shape.depth; ++i) {
    const std::string p = "visual.blocks." + std::to_string(i) + ".";
    vit.blocks_.push_back({weights.take(p + "norm1.weight", {d}, options),
                           weights.take(p + "norm2.weight", {d}, options), linear(p + "attn.qkv", 3 * d, d),
                           linear(p + "attn.proj", d, d), linear(p + "mlp.gate_proj", ff, d),
                           linear(p + "mlp.up_proj", ff, d), linear(p + "mlp.down_proj", d, ff),
                           std::find(full.begin(), full.end(), i) != full.end()});
    // A GPU's matrix units want rows of 16 bytes, which the published width of 3420 is not; zeros change
    // nothing.
    if (const int64_t even = (ff + 15) / 16 * 16; options.device().is_cuda() && even != ff) {
      Block& block = vit.blocks_.back();
      block.gate_proj = padded(block.gate_proj, even, d);
      block.up_proj = padded(block.up_proj, even, d);
      block.down_proj = padded(block.down_proj, d, even);
    }
  }
  const int64_t unit = d * shape.merge * shape.merge;
  vit.ln_q_ = weights.take("visual.merger.ln_q.weight", {d}, options);
  vit.merger_0_ = linear("visual.merger.mlp.0", unit, unit);
  vit.merger_2_ = linear("visual.merger.mlp.2", out, unit);
  return vit;
}

int64_t Qwen25Vit::first_full_block() const {
  const auto found =
      std::find_if(blocks_.begin(), blocks_.end() - 1, [](const Block& block) { return block.full; });
  return found - blocks_.begin();
}

class Qwen25Vit::Pass : public QwenVitPass {
 public:
  Pass(const Qwen25Vit& vit, const std::vector<Patches>& images, const VisionTaps& taps)
      : QwenVitPass(vit.shape_, vit.patch_embed_, images, taps), vit_(vit) {}

  std::unique_ptr<Encoding> copy() const override { return copied(*this); }
  VisionOutput finish() override {
    out_.embeds = merged(vit_.merger_2_.bias.size(0), [&](const at::Tensor& rows) {
      const at::Tensor n = rms_norm(rows, vit_.ln_q_, kNormEps);
      return vit_.merger_2_(at::gelu(vit_.merger_0_(n.view({rows.size(0) / unit(), -1}))));
    });
    return std::move(out_);
  }

 private:
  void run(int64_t index) override {
    const Block& block = vit_.blocks_[index];
    const at::Tensor mixed =
        attention([&](const at::Tensor& rows) { return rms_norm(rows, block.norm1, kNormEps); }, block.qkv,
                  /*windows=*/!block.full);
    for_each_block(x_.size(0), block_rows(), [&](int64_t first, int64_t count) {
      at::Tensor to = x_.narrow(0, first, count), x = to;
      const at::Tensor n = add_rms_norm(x, block.proj(mixed.narrow(0, first, count)), block.norm2, kNormEps);
      const auto [gate, up] = linears(n, block.gate_proj, block.up_proj);
      at::add_out(to, x, block.down_proj(silu_mul(gate, up)));
    });
  }

  const Qwen25Vit& vit_;
};

std::unique_ptr<Encoding> Qwen25Vit::encoding(const std::vector<Patches>& images,
                                              const VisionTaps& taps) const {
  return std::make_unique<Pass>(*this, images, taps);
}

}  // namespace glimpse
