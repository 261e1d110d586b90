#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "glimpse/models/clip_block.h"
#include "glimpse/models/vision.h"

namespace glimpse {

/// CLIP's vision transformer up to the state that LLaVA reads: class token, learned positions, pre-norm
/// blocks with biases. Later blocks are neither loaded nor run.
class ClipVit {
 public:
  /// Takes `visual.vision_model.*`. `last_state`: index of the hidden state wanted (0 = embeddings, then one
  /// per block), counted from the end if negative.
  static ClipVit load(const nlohmann::json& vision_config, int64_t last_state, const Weights& weights,
                      at::TensorOptions options, const WeightOptions& how = {});

  /// Patches [n * tokens(), 3 * patch * patch] of n pictures -> the hidden states `taps.states`, each
  /// [n * tokens(), hidden_size()], with `taps.class_tokens` followed by the n class tokens'. `attention`
  /// receives what is asked of blocks, in the same order.
  std::vector<at::Tensor> operator()(const at::Tensor& pixel_values, const VisionTaps& taps,
                                     std::vector<VisionAttention>* attention) const;

  int64_t last_state() const { return static_cast<int64_t>(blocks_.size()); }
  int64_t hidden_size() const { return class_embedding_.size(0); }
  int64_t patch() const { return patch_; }
  int64_t image_size() const { return image_size_; }
  /// Blocks of the whole encoder, those that are not loaded included.
  int64_t depth() const { return depth_; }
  int64_t tokens() const { return position_embedding_.size(0) - 1; }

 private:
  int64_t depth_ = 0, patch_ = 14, image_size_ = 224;
  Linear patch_embedding_;
  at::Tensor class_embedding_, position_embedding_;
  ClipNorm pre_layrnorm_;  // spelt as in the checkpoints
  std::vector<ClipBlock> blocks_;
};

}  // namespace glimpse
