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

  /// One picture between two blocks.
  class Pass;

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

/// Of what is recorded each tensor has a row per patch [tokens(), ...] and, with VisionTaps::class_tokens,
/// the class token's behind them. It must not outlive the encoder.
class ClipVit::Pass {
 public:
  /// Patches [tokens(), 3 * patch * patch].
  Pass(const ClipVit& vit, const at::Tensor& pixel_values, VisionTaps taps);

  /// Blocks that have run: the index of the hidden state that is there.
  int64_t blocks_run() const { return next_; }
  void step();
  /// See Encoding. The class token stays.
  void keep(const std::vector<int64_t>& tokens);

  /// The hidden states and the attention asked for, as far as it has come.
  const std::vector<at::Tensor>& states() const { return states_; }
  const std::vector<VisionAttention>& attention() const { return attention_; }
  /// The hidden state that is there.
  at::Tensor state() const { return placed(x_); }
  /// Of all that it holds.
  size_t bytes() const;

 private:
  at::Tensor placed(const at::Tensor& rows) const;
  void note_state();

  const ClipVit& vit_;
  const VisionTaps taps_;
  const std::vector<int64_t> tapped_;
  at::Tensor x_;       // [1 + patches left, d]: class token first
  at::Tensor places_;  // of the patches that are left, if some are gone
  std::vector<at::Tensor> states_;
  std::vector<VisionAttention> attention_;
  int64_t next_ = 0;  // block
};

}  // namespace glimpse
