#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <string>
#include <vector>

#include "glimpse/models/clip_block.h"
#include "glimpse/text/tokenizer.h"

namespace glimpse {

/// CLIP's text tower (arXiv 2103.00020): a causal transformer over byte-pair tokens with learned positions,
/// of which the row at the end token stands for the text; and the projections that bring texts and the vision
/// encoder's patches into one space.
class ClipText {
 public:
  /// The texts that CLIP can read are this short.
  static constexpr int64_t positions = 77;

  /// Whether a checkpoint holds it.
  static bool is_in(const Weights& weights) { return weights.contains("text_projection.weight"); }
  /// Its size, from a whole CLIP's config.json.
  static ClipShape shape_of(const nlohmann::json& config);
  static int64_t width_of(const nlohmann::json& config) { return clip_number(config, "projection_dim", 512); }
  /// Takes `text_model.*`, the projections and `visual.vision_model.post_layernorm` of a whole CLIP, of which
  /// `config` is the config.json. `vision_width`: of the hidden states that image() is given.
  static ClipText load(const nlohmann::json& config, int64_t vision_width, const Weights& weights,
                       std::unique_ptr<Tokenizer> tokenizer, at::TensorOptions options);

  /// The ids of a text between begin and end token, cut into pieces of 77; the last one may be shorter.
  std::vector<std::vector<int64_t>> pieces(const std::string& text) const;
  /// Pieces [M] -> their embeddings [M, P].
  at::Tensor text(const std::vector<std::vector<int64_t>>& pieces) const;
  /// Hidden states of patches [N, vision_width] -> their embeddings [N, P].
  at::Tensor image(const at::Tensor& states) const;

  /// Rows of a piece that the tower runs: up to the one that stands for it, which cannot see further.
  int64_t rows_read(const std::vector<int64_t>& piece) const;

 private:
  std::unique_ptr<Tokenizer> tokenizer_;
  int64_t begin_ = 0, end_ = 0;  // token ids
  int64_t eos_in_config_ = 0;
  at::Tensor token_embedding_, position_embedding_;
  std::vector<ClipBlock> blocks_;
  ClipNorm final_layer_norm_, post_layernorm_;
  Linear text_projection_, visual_projection_;
};

}  // namespace glimpse
