#pragma once

#include <memory>
#include <nlohmann/json.hpp>

#include "glimpse/io/checkpoint.h"
#include "glimpse/nn/linear.h"
#include "glimpse/prune/keep_rule.h"
#include "glimpse/prune/pruner.h"

namespace glimpse {

/// What stays: what a KeepRule says, and the likeliest up to the floor.
struct ScoutRule : KeepRule {
  double floor = 0.22;

  Fields fields();
  /// Ascending indices among logits [n] float32, n of `total` tokens of which the floor is a part.
  std::vector<int64_t> apply(const at::Tensor& logits, int64_t total) const;
  /// The same by the windows of an encoder, whose logit is the largest of their tokens': threshold, cap and
  /// floor are of windows, all living tokens of a kept one stay. `window` [n]: each token's.
  std::vector<int64_t> apply_to_windows(const at::Tensor& logits, const std::vector<int64_t>& window) const;
};

/// The shape of a scout, "scout" or "encoder_scout" in a config.json of pruning modules.
struct ScoutConfig {
  std::vector<int64_t> visual_layers;  ///< encoder blocks that it reads
  int64_t width = 64, layers = 1, heads = 4;
  int64_t match_heads = 4, match_rank = 32;  ///< of the match between words and visual tokens
  int64_t encoder = -1;  ///< block of the encoder after which it chooses; -1: before the language model
  int64_t guess = 256;   ///< inner width of what then stands for the projected tokens
  ScoutRule rule;        ///< of it threshold and floor are stored

  Fields fields();  ///< all but visual_layers
  /// Errors name the field, what was expected and what came.
  static ScoutConfig from_json(const nlohmann::json& scout, int64_t vision_depth);
  nlohmann::json to_json() const;
  bool in_encoder() const { return encoder >= 0; }
  /// What it is called in config.json; its tensors are in a file of that name.
  const char* member() const { return in_encoder() ? "encoder_scout" : "scout"; }
};

/// What a scout looks at: the tokens of one picture, and the question about it.
struct ScoutInput {
  at::Tensor visual;             ///< [n, D]: projected tokens; within the encoder undefined
  std::vector<at::Tensor> taps;  ///< [n, Dv] each: encoder states, in the order of ScoutConfig::visual_layers
  std::vector<int64_t> row, col;  ///< [n]: where they stand
  at::Tensor words;               ///< [T, D]: input embeddings of the question
};
/// What a view within the encoder or before the first layer shows of each picture, with a scout's taps.
std::vector<ScoutInput> scout_inputs(const View& view);

/// Predicts before the language model which visual tokens a question needs (docs/early_cut.md): it matches
/// projected tokens with the question's words, then lets both attend to each other in a few narrow layers.
/// Within the encoder it guesses the projected tokens. Decides by thresholds, so it runs in float32.
class Scout {
 public:
  /// Takes all of `weights`. Where they require gradients, so does the result.
  static Scout build(const ScoutConfig& config, const Weights& weights, int64_t hidden_size,
                     int64_t vision_width, at::Device device);
  /// `dir` holds a config.json, `config`, with this member ("scout" or "encoder_scout"), and the member's
  /// safetensors. Null if it has no such member.
  static std::shared_ptr<const Scout> load(const std::filesystem::path& dir, const nlohmann::json& config,
                                           const std::string& member, int64_t hidden_size,
                                           int64_t vision_width, int64_t vision_depth, at::Device device);

  /// A logit per visual token: [n] float32. `guess`, if not null, receives what stands for the projected
  /// tokens within the encoder: [n, D] float32.
  at::Tensor operator()(const ScoutInput& input, at::Tensor* guess = nullptr) const;

  const ScoutConfig& config() const { return config_; }
  /// Operations of its products on n visual tokens and t words.
  double operations(double n, double t) const;

 private:
  struct Layer {
    at::Tensor norm1, norm2;
    Linear qkv_proj, o_proj, gate_proj, up_proj, down_proj;
  };
  /// The match [n, 2 * match_heads]: per head the best word's score, and the words' mean by their weights.
  at::Tensor match(const at::Tensor& visual, const at::Tensor& words) const;

  ScoutConfig config_;
  int64_t hidden_size_ = 0, vision_width_ = 0;
  at::Tensor visual_norm_, text_norm_, norm_, kinds_;
  std::vector<at::Tensor> tap_norms_;
  Linear guess_0_, guess_2_;
  Linear visual_proj_, tap_proj_, text_proj_, match_q_, match_k_, match_gate_, match_proj_, match_out_,
      out_proj_;
  std::vector<Layer> layers_;
};

/// Cuts by a scout before the first layer, or within the encoder, there by whole windows.
class ScoutPruner : public Pruner {
 public:
  ScoutPruner(std::shared_ptr<const Scout> scout, ScoutRule rule) : scout_(std::move(scout)), rule_(rule) {}
  std::string name() const override { return "scout"; }
  nlohmann::json settings() const override;
  std::vector<Cut> cuts() const override;
  Taps taps() const override { return {scout_->config().visual_layers, {}, false, nullptr, {}}; }
  bool is_shortcut() const override { return true; }
  Selection select(const View& view, const Cut& cut, const Budget& budget) const override;
  double operations(const Cut& cut, const CutSizes& sizes) const override;

 private:
  std::shared_ptr<const Scout> scout_;
  ScoutRule rule_;
};

}  // namespace glimpse
