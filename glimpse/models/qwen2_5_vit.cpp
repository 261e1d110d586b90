#include "glimpse/models/qwen2_5_vit.h"

#include <algorithm>

#include "glimpse/base/check.h"
#include "glimpse/nn/attention.h"
#include "glimpse/nn/device.h"
#include "glimpse/nn/index_tensor.h"
#include "glimpse/nn/ops.h"
#include "glimpse/nn/row_blocks.h"

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

VitWindows VitWindows::at(const std::vector<int64_t>& positions) const {
  const auto left_of = [&](const std::vector<int64_t>& lengths) {
    std::vector<int64_t> left;
    auto next = positions.begin();
    int64_t end = 0;
    for (const int64_t length : lengths) {
      const auto first = next;
      next = std::lower_bound(first, positions.end(), end += length);
      if (next != first) left.push_back(next - first);
    }
    return left;
  };
  return {index.index_select(0, at::tensor(positions, at::kLong)), left_of(window_lengths),
          left_of(frame_lengths)};
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
    // A GPU's matrix units want rows of 16 bytes, which the published width of 3420 is not; zeros change
    // nothing.
    if (const int64_t even = (ff + 15) / 16 * 16; options.device().is_cuda() && even != ff) {
      Block& block = vit.blocks_.back();
      block.gate_proj = padded(block.gate_proj, even, d);
      block.up_proj = padded(block.up_proj, even, d);
      block.down_proj = padded(block.down_proj, d, even);
    }
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

int64_t Qwen25Vit::first_full_block() const {
  const auto found =
      std::find_if(blocks_.begin(), blocks_.end() - 1, [](const Block& block) { return block.full; });
  return found - blocks_.begin();
}

// The encoder between two of its blocks. What has a row per patch is what makes large images large: of that
// there are the hidden states, and inside a block queries, keys, values and their mix. Parts are copied into
// what stays: parts that stayed among temporary ones would leave holes in the heap.
class Qwen25Vit::Pass : public Encoding {
 public:
  Pass(const Qwen25Vit& vit, const std::vector<Patches>& images, const VisionTaps& taps)
      : vit_(vit), taps_(taps), tapped_(tapped_blocks(taps, vit.depth())) {
    for (const Patches& image : images) {
      check(image.pixel_values.size(1) == vit.patch_embed_.weight.size(1), "pixel values: a patch has ",
            image.pixel_values.size(1), " values, expected ", vit.patch_embed_.weight.size(1));
      pixels_.push_back(image.pixel_values);
      grids_.push_back(image.grid);
    }
    out_.states.resize(taps.states.size());
    out_.attention.resize(taps.attention.size());
  }

  int64_t steps() const override { return vit_.depth() - next_; }
  std::optional<int64_t> blocks_run() const override { return next_; }
  const VisionOutput& recorded() const override { return out_; }

  void keep(const std::vector<int64_t>& tokens) override {
    std::vector<int64_t> positions;
    const int64_t* token = windows_.index.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < windows_.index.numel(); ++i)
      if (std::binary_search(tokens.begin(), tokens.end(), token[i])) positions.push_back(i);
    const at::Tensor stay = index_tensor(positions, x_.device());
    x_ = units_of(x_, stay);
    tables_ = {units_of(tables_.cos, stay), units_of(tables_.sin, stay)};
    enter(windows_.at(positions));
  }

  void step() override {
    if (next_ == 0) embed();
    const Block& block = vit_.blocks_[next_];
    const at::Tensor mixed = attention(block);
    for_each_block(x_.size(0), block_rows(), [&](int64_t first, int64_t count) {
      at::Tensor to = x_.narrow(0, first, count), x = to;
      const at::Tensor n = add_rms_norm(x, block.proj(mixed.narrow(0, first, count)), block.norm2, kNormEps);
      const auto [gate, up] = linears(n, block.gate_proj, block.up_proj);
      at::add_out(to, x, block.down_proj(silu_mul(gate, up)));
    });
    for (size_t tap = 0; tap < taps_.states.size(); ++tap)
      if (taps_.states[tap] == next_) out_.states[tap] = to_tokens(x_);
    ++next_;
  }

  VisionOutput finish() override {
    const int64_t tokens = x_.size(0) / unit();
    out_.embeds = at::empty({tokens, vit_.merger_2_.bias.size(0)}, x_.options());
    for_each_block(tokens, block_rows() / unit(), [&](int64_t first, int64_t count) {
      const at::Tensor n = rms_norm(x_.narrow(0, first * unit(), count * unit()), vit_.ln_q_, kNormEps);
      out_.embeds.narrow(0, first, count)
          .copy_(vit_.merger_2_(at::gelu(vit_.merger_0_(n.view({count, -1})))));
    });
    out_.embeds = placed(out_.embeds);
    return std::move(out_);
  }

 private:
  // They are narrower than the language model's.
  int64_t block_rows() const { return 2 * max_block_rows(vit_.patch_embed_.weight.device()); }

  int64_t unit() const { return vit_.merge_ * vit_.merge_; }

  // Merge units move as a whole; their patches stay together.
  at::Tensor units_of(const at::Tensor& t, const at::Tensor& index) const {
    return t.view({-1, unit(), t.size(1)}).index_select(0, index).view({-1, t.size(1)});
  }
  // Tokens in window order -> row-major, zero where there is none any more.
  at::Tensor placed(const at::Tensor& t) const {
    return at::zeros({std::ssize(out_.windows), t.size(1)}, t.options()).index_copy_(0, order_, t);
  }
  // Patches in window order -> their merge units' means, row-major.
  at::Tensor to_tokens(const at::Tensor& t) const { return placed(t.view({-1, unit(), t.size(1)}).mean(1)); }

  // From here on these are the tokens.
  void enter(VitWindows windows) {
    windows_ = std::move(windows);
    order_ = to_device(windows_.index, vit_.patch_embed_.weight.device());
    const auto patches_of = [&](std::vector<int64_t> lengths) {
      for (int64_t& length : lengths) length *= unit();
      return Segments(std::move(lengths));
    };
    window_patches_ = patches_of(windows_.window_lengths);
    frame_patches_ = patches_of(windows_.frame_lengths);
  }

  void embed() {
    const at::TensorOptions options = vit_.patch_embed_.weight.options();
    enter(vit_windows(grids_, vit_.merge_, vit_.window_tokens_));
    x_ = at::empty({windows_.index.size(0) * unit(), vit_.hidden_size_}, options);
    int64_t row = 0;
    for (at::Tensor& pixels : pixels_) {
      for_each_block(pixels.size(0), block_rows(), [&](int64_t first, int64_t count) {
        x_.narrow(0, row + first, count).copy_(vit_.patch_embed_(pixels.narrow(0, first, count).to(options)));
      });
      row += pixels.size(0);
      pixels.reset();
    }
    x_ = units_of(x_, order_);
    const Rope tables = vit_.rope(grids_);
    tables_ = {units_of(to_device(tables.cos, options.device()), order_),
               units_of(to_device(tables.sin, options.device()), order_)};
    const int64_t* token = windows_.index.const_data_ptr<int64_t>();
    out_.windows.resize(windows_.index.numel());
    for (size_t w = 0; w < windows_.window_lengths.size(); ++w)
      for (int64_t i = 0; i < windows_.window_lengths[w]; ++i)
        out_.windows[*token++] = static_cast<int64_t>(w);
  }

  // Mixed values [P, D].
  at::Tensor attention(const Block& block) {
    const int64_t patches = x_.size(0);
    at::Tensor parts[3];  // queries, keys, values
    for (at::Tensor& part : parts)
      part = at::empty({patches, vit_.heads_, x_.size(1) / vit_.heads_}, x_.options());
    for_each_block(patches, block_rows(), [&](int64_t first, int64_t count) {
      const at::Tensor n = rms_norm(x_.narrow(0, first, count), block.norm1, kNormEps);
      const at::Tensor qkv = block.qkv(n).view({count, 3, vit_.heads_, -1});
      for (int64_t i = 0; i < 3; ++i) parts[i].narrow(0, first, count).copy_(qkv.select(1, i));
    });
    at::Tensor q = apply_rope(parts[0], tables_), k = apply_rope(parts[1], tables_);
    at::Tensor mixed = segment_attention(q, k, parts[2], block.full ? frame_patches_ : window_patches_);
    parts[2].reset();
    if (std::find(tapped_.begin(), tapped_.end(), next_) != tapped_.end()) record(q, k);
    return mixed;
  }

  // Notes the attention that is asked of this block. Queries and keys are not needed any more.
  void record(at::Tensor q, at::Tensor k) {
    const at::Tensor keys = to_tokens(k.to(at::kFloat).mean(1));
    bool rotated_twice = false;
    for (const bool twice : {false, true})
      for (size_t tap = 0; tap < tapped_.size(); ++tap) {
        if (tapped_[tap] != next_ || taps_.attention[tap].rotate_twice != twice) continue;
        if (twice && !rotated_twice) {
          q = apply_rope(q, tables_);
          k = apply_rope(k, tables_);
          rotated_twice = true;
        }
        const at::Tensor received = received_attention(q, k, frame_patches_.lengths);
        out_.attention[tap] = {to_tokens(received.unsqueeze(1)).squeeze(1), keys};
      }
  }

  const Qwen25Vit& vit_;
  const VisionTaps taps_;
  const std::vector<int64_t> tapped_;
  std::vector<at::Tensor> pixels_;  // of each image, until it is embedded
  std::vector<Grid> grids_;
  VitWindows windows_;  // of the tokens that are left
  at::Tensor order_;    // its index on the device: window order -> row-major
  Segments window_patches_, frame_patches_;
  at::Tensor x_;  // [P, D]: patches in window order
  Rope tables_;   // of them
  VisionOutput out_;
  int64_t next_ = 0;  // block
};

std::unique_ptr<Encoding> Qwen25Vit::encoding(const std::vector<Patches>& images,
                                              const VisionTaps& taps) const {
  return std::make_unique<Pass>(*this, images, taps);
}

}  // namespace glimpse
