#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "glimpse/io/checkpoint.h"
#include "glimpse/models/qwen_vit.h"

namespace glimpse {

/// Qwen2.5-VL's vision encoder: RMSNorm, 2-D rotary, attention inside windows of 112 pixels except in a few
/// full blocks, a merger that joins 2 x 2 patches into one visual token.
class Qwen25Vit {
 public:
  static Qwen25Vit load(const nlohmann::json& vision_config, const Weights& weights,
                        at::TensorOptions options, const WeightOptions& how = {});

  /// Before its first step, which are its blocks, over images of patches [P, 3 * 2 * 14 * 14]. States and
  /// attention that are recorded are averaged over each merge unit. It must not outlive the encoder.
  std::unique_ptr<Encoding> encoding(const std::vector<Patches>& images, const VisionTaps& taps) const;

  int64_t depth() const { return shape_.depth; }
  int64_t hidden_size() const { return shape_.hidden; }
  /// The first block that attends over whole images; the last one if none does.
  int64_t first_full_block() const;

 private:
  struct Block {
    at::Tensor norm1, norm2;
    Linear qkv, proj, gate_proj, up_proj, down_proj;
    bool full = false;
  };
  class Pass;

  QwenVitShape shape_;
  Linear patch_embed_, merger_0_, merger_2_;
  at::Tensor ln_q_;
  std::vector<Block> blocks_;
};

}  // namespace glimpse
