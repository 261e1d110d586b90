#include "glimpse/models/qwen2_5_vit.h"

#include <algorithm>

#include "glimpse/base/check.h"
#include "glimpse/nn/attention.h"
#include "glimpse/nn/ops.h"

namespace glimpse {

namespace {
constexpr double kNormEps = 1e-6;
}

VitWindows vit_windows(const std::vector<Grid>& grids, int64_t merge, int64_t window_tokens) {
  VitWindows windows;
  std::vector<int64_t> order;
  for (const Grid& grid : grids) {
    const int64_t rows = grid.h / merge, cols = grid.w / merge;
    for (int64_t t = 0; t < grid.t; ++t) {
      const int64_t first = static_cast<int64_t>(order.size());
      for (int64_t top = 0; top < rows; top += window_tokens)
        for (int64_t left = 0; left < cols; left += window_tokens) {
          const int64_t bottom = std::min(top + window_tokens, rows),
                        right = std::min(left + window_tokens, cols);
          for (int64_t r = top; r < bottom; ++r)
            for (int64_t c = left; c < right; ++c) order.push_back(first + r * cols + c);
          windows.window_lengths.push_back((bottom - top) * (right - left));
        }
      windows.frame_lengths.push_back(rows * cols);
    }
  }
  windows.index = at::tensor(order, at::kLong);
  return windows;
}

Qwen25Vit Qwen25Vit::load(const nlohmann::json& c, const Weights& weights, at::TensorOptions options,
                          const WeightOptions& how) {
  Qwen25Vit vit;
  const auto number = [&](const char* key, int64_t fallback) {
    const int64_t value = c.value(key, fallback);
    check(value > 0 && value < (1 << 24), "vision_config: ", key, " is ", value);
    return value;
  };
  const int64_t d = vit.hidden_size_ = number("hidden_size", 1280), ff = number("intermediate_size", 3420);
  const int64_t depth = number("depth", 32), patch = number("patch_size", 14),
                out = number("out_hidden_size", 3584);
  const int64_t temporal = number("temporal_patch_size", 2);
  vit.heads_ = number("num_heads", 16);
  vit.merge_ = number("spatial_merge_size", 2);
  vit.window_tokens_ = number("window_size", 112) / vit.merge_ / patch;
  const auto full = c.value("fullatt_block_indexes", std::vector<int64_t>{7, 15, 23, 31});
  check(d % vit.heads_ == 0 && (d / vit.heads_) % 4 == 0 && vit.window_tokens_ > 0,
        "vision_config: hidden_size ", d, ", num_heads ", vit.heads_, " and window_size do not fit together");

  const auto linear = [&](const std::string& name, int64_t rows, int64_t cols) {
    return take_linear(weights, name, rows, cols, true, options, how);
  };
  vit.patch_embed_.weight =
      weights.take("visual.patch_embed.proj.weight", {d, 3, temporal, patch, patch}, options).flatten(1);
  for (int64_t i = 0; i < depth; ++i) {
    const std::string p = "visual.blocks." + std::to_string(i) + ".";
    vit.blocks_.push_back({weights.take(p + "norm1.weight", {d}, options),
                           weights.take(p + "norm2.weight", {d}, options), linear(p + "attn.qkv", 3 * d, d),
                           linear(p + "attn.proj", d, d), linear(p + "mlp.gate_proj", ff, d),
                           linear(p + "mlp.up_proj", ff, d), linear(p + "mlp.down_proj", d, ff),
                           std::find(full.begin(), full.end(), i) != full.end()});
  }
  const int64_t unit = d * vit.merge_ * vit.merge_;
  vit.ln_q_ = weights.take("visual.merger.ln_q.weight", {d}, options);
  vit.merger_0_ = linear("visual.merger.mlp.0", unit, unit);
  vit.merger_2_ = linear("visual.merger.mlp.2", out, unit);
  return vit;
}

// Angles of every patch in merge-unit order: half of the pairs turn with the row, half with the column.
Rope Qwen25Vit::rope(const std::vector<Grid>& grids) const {
  std::vector<float> rows, cols;
  for (const Grid& grid : grids)
    for (int64_t t = 0; t < grid.t; ++t)
      for (int64_t r = 0; r < grid.h; r += merge_)
        for (int64_t c = 0; c < grid.w; c += merge_)
          for (int64_t i = 0; i < merge_; ++i)
            for (int64_t j = 0; j < merge_; ++j) {
              rows.push_back(static_cast<float>(r + i));
              cols.push_back(static_cast<float>(c + j));
            }
  const at::Tensor frequencies = inverse_frequencies(hidden_size_ / heads_ / 2, 10000.0);
  return rope_from_angles(
      at::cat({at::outer(at::tensor(rows), frequencies), at::outer(at::tensor(cols), frequencies)}, 1));
}

at::Tensor Qwen25Vit::attention(const Block& block, const at::Tensor& x, const Rope& rope,
                                const std::vector<int64_t>& lengths, const SeeQueryKey& see) const {
  const at::Tensor qkv = block.qkv(x).view({x.size(0), 3, heads_, -1});
  const auto part = [&](int64_t i) { return qkv.select(1, i).contiguous(); };
  const at::Tensor q = apply_rope(part(0), rope), k = apply_rope(part(1), rope);
  if (see) see(q, k);
  return block.proj(segment_attention(q, k, part(2), lengths));
}

int64_t Qwen25Vit::first_full_block() const {
  const auto found =
      std::find_if(blocks_.begin(), blocks_.end() - 1, [](const Block& block) { return block.full; });
  return found - blocks_.begin();
}

VisionOutput Qwen25Vit::operator()(const at::Tensor& pixel_values, const std::vector<Grid>& grids,
                                   const VisionTaps& taps) const {
  const int64_t unit = merge_ * merge_;
  const VitWindows windows = vit_windows(grids, merge_, window_tokens_);
  const at::Device device = patch_embed_.weight.device();
  const at::Tensor order = windows.index.to(device);              // window order -> row-major
  const at::Tensor inverse = windows.index.argsort().to(device);  // row-major -> window order

  // Merge units move as a whole; their patches stay together.
  const auto to_windows = [&](const at::Tensor& t) {
    return t.view({-1, unit, t.size(1)}).index_select(0, order).view({-1, t.size(1)});
  };
  at::Tensor x = to_windows(patch_embed_(pixel_values.to(patch_embed_.weight.options())));
  Rope tables = rope(grids);
  tables = {to_windows(tables.cos.to(device)), to_windows(tables.sin.to(device))};
  std::vector<int64_t> window_patches = windows.window_lengths, frame_patches = windows.frame_lengths;
  for (int64_t& n : window_patches) n *= unit;
  for (int64_t& n : frame_patches) n *= unit;

  // Patches in window order -> their merge units' means, row-major.
  const auto to_tokens = [&](const at::Tensor& t) {
    return t.view({-1, unit, t.size(1)}).mean(1).index_select(0, inverse);
  };

  VisionOutput out;
  out.states.resize(taps.states.size());
  out.attention.resize(taps.attention.size());
  const std::vector<int64_t> tapped = tapped_blocks(taps, depth());
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const Block& block = blocks_[i];
    const auto record = [&](const at::Tensor& q, const at::Tensor& k) {
      for (size_t tap = 0; tap < tapped.size(); ++tap) {
        if (tapped[tap] != static_cast<int64_t>(i)) continue;
        const auto turned = [&](const at::Tensor& t) {
          return taps.attention[tap].rotate_twice ? apply_rope(t.clone(), tables) : t;
        };
        const at::Tensor received = received_attention(turned(q), turned(k), frame_patches);
        out.attention[tap] = {to_tokens(received.unsqueeze(1)).squeeze(1),
                              to_tokens(k.to(at::kFloat).mean(1))};
      }
    };
    const bool wanted = std::find(tapped.begin(), tapped.end(), static_cast<int64_t>(i)) != tapped.end();
    const at::Tensor mixed =
        attention(block, rms_norm(x, block.norm1, kNormEps), tables,
                  block.full ? frame_patches : window_patches, wanted ? SeeQueryKey(record) : nullptr);
    const at::Tensor n = add_rms_norm(x, mixed, block.norm2, kNormEps);
    x = x + block.down_proj(silu_mul(block.gate_proj(n), block.up_proj(n)));
    for (size_t tap = 0; tap < taps.states.size(); ++tap)
      if (taps.states[tap] == static_cast<int64_t>(i)) out.states[tap] = to_tokens(x);
  }
  const at::Tensor merged = at::gelu(merger_0_(rms_norm(x, ln_q_, kNormEps).view({-1, unit * hidden_size_})));
  out.embeds = merger_2_(merged).index_select(0, inverse);

  std::vector<int64_t> window_of;
  for (size_t w = 0; w < windows.window_lengths.size(); ++w)
    window_of.insert(window_of.end(), windows.window_lengths[w], static_cast<int64_t>(w));
  out.windows = at::tensor(window_of, at::kLong).to(device).index_select(0, inverse);
  return out;
}

}  // namespace glimpse
