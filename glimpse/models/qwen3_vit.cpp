#include "glimpse/models/qwen3_vit.h"

#include <algorithm>
#include <cmath>

#include "glimpse/base/check.h"
#include "glimpse/models/config.h"
#include "glimpse/nn/ops.h"

namespace glimpse {

namespace {
constexpr double kNormEps = 1e-6;
}

Qwen3Vit Qwen3Vit::load(const nlohmann::json& c, const Weights& weights, at::TensorOptions options,
                        const WeightOptions& how) {
  Qwen3Vit vit;
  constexpr const char* where = "vision_config";
  const auto number = [&](const char* key, int64_t fallback) {
    const auto value = setting<int64_t>(c, key, fallback, where);
    check(value > 0 && value < (1 << 24), where, ": ", key, " is ", value);
    return value;
  };
  QwenVitShape& shape = vit.shape_;
  const int64_t d = shape.hidden = number("hidden_size", 1152), ff = number("intermediate_size", 4304);
  const int64_t patch = number("patch_size", 16), temporal = number("temporal_patch_size", 2),
                out = number("out_hidden_size", 3584), positions = number("num_position_embeddings", 2304);
  shape.depth = number("depth", 27);
  shape.heads = number("num_heads", 16);
  shape.merge = number("spatial_merge_size", 2);
  check(d % shape.heads == 0 && (d / shape.heads) % 4 == 0, where, ": hidden_size ", d, " and num_heads ",
        shape.heads, " do not fit together");
  vit.side_ = std::llround(std::sqrt(static_cast<double>(positions)));
  check(vit.side_ * vit.side_ == positions, where, ": num_position_embeddings ", positions, " is no square");
  check(number("in_channels", 3) == 3, where, ": in_channels other than 3 are not supported");
  const auto act = setting<std::string>(c, "hidden_act", "gelu_pytorch_tanh", where);
  check(act == "gelu_pytorch_tanh", where, ": hidden_act '", act,
        "' is not supported, only gelu_pytorch_tanh");
  vit.deepstack_ = setting<std::vector<int64_t>>(c, "deepstack_visual_indexes", {8, 16, 24}, where);
  for (size_t i = 0; i < vit.deepstack_.size(); ++i)
    check(vit.deepstack_[i] >= (i == 0 ? 0 : vit.deepstack_[i - 1] + 1) && vit.deepstack_[i] < shape.depth,
          where, ": deepstack_visual_indexes must ascend and name blocks of 0 to ", shape.depth - 1, ", got ",
          vit.deepstack_[i]);

  const auto linear = [&](const std::string& name, int64_t rows, int64_t cols) {
    return take_linear(weights, name, rows, cols, true, options, how);
  };
  const auto norm = [&](const std::string& name, int64_t width) {
    return Norm{weights.take(name + ".weight", {width}, options),
                weights.take(name + ".bias", {width}, options)};
  };
  vit.patch_embed_ = {
      weights.take("visual.patch_embed.proj.weight", {d, 3, temporal, patch, patch}, options).flatten(1),
      weights.take("visual.patch_embed.proj.bias", {d}, options)};
  vit.pos_embed_ = weights.take("visual.pos_embed.weight", {positions, d}, options);
  for (int64_t i = 0; i < shape.depth; ++i) {
    const std::string p = "visual.blocks." + std::to_string(i) + ".";
    vit.blocks_.push_back({norm(p + "norm1", d), norm(p + "norm2", d), linear(p + "attn.qkv", 3 * d, d),
                           linear(p + "attn.proj", d, d), linear(p + "mlp.linear_fc1", ff, d),
                           linear(p + "mlp.linear_fc2", d, ff)});
  }
  const int64_t unit = d * shape.merge * shape.merge;
  const auto merger = [&](const std::string& p, int64_t norm_width) {
    return Merger{norm(p + "norm", norm_width), linear(p + "linear_fc1", unit, unit),
                  linear(p + "linear_fc2", out, unit)};
  };
  vit.merger_ = merger("visual.merger.", d);
  for (size_t i = 0; i < vit.deepstack_.size(); ++i)
    vit.deepstack_mergers_.push_back(merger("visual.deepstack_merger_list." + std::to_string(i) + ".", unit));
  return vit;
}

at::Tensor Qwen3Vit::Norm::operator()(const at::Tensor& x) const {
  return layer_norm(x, weight, bias, kNormEps);
}

at::Tensor Qwen3Vit::Merger::operator()(const at::Tensor& rows, int64_t unit) const {
  const bool whole_units = norm.weight.size(0) > rows.size(1);
  const auto joined = [&](const at::Tensor& x) { return x.reshape({rows.size(0) / unit, -1}); };
  const at::Tensor n = whole_units ? norm(joined(rows)) : joined(norm(rows));
  return linear_fc2(at::gelu(linear_fc1(n)));
}

// The corners of the grid are those of the table.
at::Tensor Qwen3Vit::position_rows(const Grid& grid, int64_t first, int64_t count) const {
  struct Along {
    at::Tensor low, high, part;
  };
  const auto along = [&](int64_t size, const at::Tensor& places) {
    const at::Tensor at_table =
        at::linspace(0, static_cast<double>(side_ - 1), size, at::kFloat).index_select(0, places);
    const at::Tensor low = at_table.floor();
    const at::Device device = pos_embed_.device();
    return Along{low.to(at::kLong).to(device), (low.to(at::kLong) + 1).clamp_max(side_ - 1).to(device),
                 (at_table - low).unsqueeze(1).to(device)};
  };
  const PatchPlaces places = patch_places({grid}, shape_.merge);
  const Along y = along(grid.h, places.rows.narrow(0, first, count)),
              x = along(grid.w, places.cols.narrow(0, first, count));
  const auto corner = [&](const at::Tensor& row, const at::Tensor& col) {
    return pos_embed_.index_select(0, row * side_ + col).to(at::kFloat);
  };
  const at::Tensor both = y.part * x.part;
  return corner(y.low, x.low) * (1 - y.part - x.part + both) + corner(y.low, x.high) * (x.part - both) +
         corner(y.high, x.low) * (y.part - both) + corner(y.high, x.high) * both;
}

class Qwen3Vit::Pass : public QwenVitPass {
 public:
  Pass(const Qwen3Vit& vit, const std::vector<Patches>& images, const VisionTaps& taps)
      : QwenVitPass(vit.shape_, vit.patch_embed_, images, taps), vit_(vit) {
    if (!vit.deepstack_.empty()) out_.additions.resize(vit.deepstack_.size() + 1);  // none before layer 0
  }

  std::unique_ptr<Encoding> copy() const override { return copied(*this); }
  VisionOutput finish() override {
    out_.embeds = through(vit_.merger_);
    return std::move(out_);
  }

 private:
  void add_positions(const Grid& grid, int64_t first, at::Tensor rows) const override {
    rows.add_(vit_.position_rows(grid, first, rows.size(0)));
  }

  void run(int64_t index) override {
    const Block& block = vit_.blocks_[index];
    const at::Tensor mixed = attention(block.norm1, block.qkv);
    for_each_block(x_.size(0), block_rows(), [&](int64_t first, int64_t count) {
      at::Tensor x = x_.narrow(0, first, count);
      x.add_(block.proj(mixed.narrow(0, first, count)));
      x.add_(block.linear_fc2(at::gelu(block.linear_fc1(block.norm2(x)), "tanh")));
    });
    for (size_t tap = 0; tap < vit_.deepstack_.size(); ++tap)
      if (vit_.deepstack_[tap] == index) out_.additions[tap + 1] = through(vit_.deepstack_mergers_[tap]);
  }

  at::Tensor through(const Merger& merger) const {
    return merged(merger.linear_fc2.bias.size(0),
                  [&](const at::Tensor& rows) { return merger(rows, unit()); });
  }

  const Qwen3Vit& vit_;
};

std::unique_ptr<Encoding> Qwen3Vit::encoding(const std::vector<Patches>& images,
                                             const VisionTaps& taps) const {
  return std::make_unique<Pass>(*this, images, taps);
}

}  // namespace glimpse
