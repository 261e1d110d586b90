#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "glimpse/image/patches.h"
#include "glimpse/io/checkpoint.h"
#include "glimpse/models/vision.h"
#include "glimpse/nn/linear.h"
#include "glimpse/nn/rotary.h"

namespace glimpse {

/// Order in which Qwen2.5-VL's encoder walks the merge units (one visual token each) of its images.
struct VitWindows {
  at::Tensor index;                     ///< [N] int64: row-major token of each position in window order
  std::vector<int64_t> window_lengths;  ///< tokens per window
  std::vector<int64_t> frame_lengths;   ///< tokens per frame: the segments of the full-attention blocks

  /// What is left of them where only some positions of the order stay; `positions` ascend.
  VitWindows at(const std::vector<int64_t>& positions) const;
};
VitWindows vit_windows(const std::vector<Grid>& grids, int64_t merge, int64_t window_tokens);

/// Qwen2.5-VL's vision encoder: RMSNorm, 2-D rotary, attention inside windows of 112 pixels except in a few
/// full blocks, a merger that joins 2 x 2 patches into one visual token.
class Qwen25Vit {
 public:
  static Qwen25Vit load(const nlohmann::json& vision_config, const Weights& weights,
                        at::TensorOptions options, const WeightOptions& how = {});

  /// Before its first step, which are its blocks, over images of patches [P, 3 * 2 * 14 * 14]. States and
  /// attention that are recorded are averaged over each merge unit. It must not outlive the encoder.
  std::unique_ptr<Encoding> encoding(const std::vector<Patches>& images, const VisionTaps& taps) const;

  int64_t depth() const { return static_cast<int64_t>(blocks_.size()); }
  int64_t hidden_size() const { return hidden_size_; }
  int64_t merge() const { return merge_; }
  /// The first block that attends over whole images; the last one if none does.
  int64_t first_full_block() const;

 private:
  struct Block {
    at::Tensor norm1, norm2;
    Linear qkv, proj, gate_proj, up_proj, down_proj;
    bool full = false;
  };
  class Pass;
  Rope rope(const std::vector<Grid>& grids) const;

  int64_t hidden_size_ = 0, heads_ = 0, merge_ = 2, window_tokens_ = 4;
  Linear patch_embed_, merger_0_, merger_2_;
  at::Tensor ln_q_;
  std::vector<Block> blocks_;
};

}  // namespace glimpse
