#pragma once

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "glimpse/prune/keep_rule.h"
#include "glimpse/prune/pruner.h"
#include "glimpse/prune/vip.h"

namespace glimpse {

/// What a base model must tell the loader of its pruning modules.
struct BaseShape {
  int64_t layers = 0, hidden_size = 0, heads = 0, vision_depth = 0, vision_width = 0;
  double rms_norm_eps = 1e-6;
};

/// The settings of a new-modules config.json (method.md section 1).
struct GlimpseConfig {
  std::vector<int64_t> selected_layers, selected_visual_layers, le_layers;
  int64_t reduce_layer = 0;
  bool use_attention_logits = true, attn_fuse_global = true, layer_norm = false;
  VipConfig vip;
  KeepRule rule;  ///< the config's own threshold, caps and anchors

  /// Errors name the field, what was expected and what came.
  static GlimpseConfig from_json(const nlohmann::json& config, const BaseShape& base);
};

/// The file of trained parts in a new-modules directory: new_modules_gp.safetensors or new_modules_gp.pt.
std::filesystem::path new_modules_file(const std::filesystem::path& dir);

/// The trained parts: glimpse token and predictor.
struct GlimpseModules {
  GlimpseConfig config;
  GuideToken token;
  Vip vip;

  /// `dir` holds config.json and new_modules_gp.pt or new_modules_gp.safetensors. The glimpse token is given
  /// in `options`' dtype.
  static std::shared_ptr<const GlimpseModules> load(const std::filesystem::path& dir, const BaseShape& base,
                                                    at::TensorOptions options);
  /// The same from `weights` with the names of new_modules_gp.pt. Where they require gradients, so does the
  /// result. `dropout` is the probability of dropout on the glimpse projection (training only).
  static GlimpseModules build(const GlimpseConfig& config, const Weights& weights, const BaseShape& base,
                              at::TensorOptions options, double dropout = 0);
};

/// GlimpsePrune: reads how the glimpse token attends to the image, lets the predictor decide, cuts after
/// layer K.
class GlimpsePruner : public Pruner {
 public:
  GlimpsePruner(std::shared_ptr<const GlimpseModules> modules, KeepRule rule)
      : modules_(std::move(modules)), rule_(std::move(rule)) {}
  std::string name() const override { return "glimpse"; }
  nlohmann::json settings() const override { return KeepRule(rule_).fields().to_json(); }
  std::vector<Cut> cuts() const override {
    return {{Cut::Place::after, modules_->config.reduce_layer, true}};
  }
  Taps taps() const override;
  Selection select(const View& view, const Cut& cut, const Budget& budget) const override;
  double operations(const Cut& cut, const CutSizes& sizes) const override;
  /// The predictor's logits [outputs, n] for a view.
  at::Tensor logits(const View& view) const;

 private:
  std::shared_ptr<const GlimpseModules> modules_;
  KeepRule rule_;
};

}  // namespace glimpse
