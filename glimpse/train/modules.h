#pragma once

#include <map>

#include "glimpse/prune/glimpse.h"

namespace glimpse {

/// The parameters that training changes, glimpse token and predictor: float32 leaves under their names in
/// new_modules_gp.pt.
class TrainableModules {
 public:
  /// Takes up the modules in `dir`.
  static TrainableModules load(const std::filesystem::path& dir, const BaseShape& base, at::Device device);
  /// New ones (method.md section 5): learnable_embeddings normal(0, 0.02), projections Xavier-uniform with
  /// zero bias, norms one. `config` is the base model's config.json with the pruning fields added.
  static TrainableModules create(const nlohmann::json& config, const BaseShape& base, uint64_t seed,
                                 at::Device device);

  /// By name, sorted; each requires gradients.
  const std::map<std::string, at::Tensor>& parameters() const { return parameters_; }
  const GlimpseConfig& config() const { return config_; }
  /// The config's le_dropout_prob (0.1 if it has none).
  double dropout() const;

  /// The modules as the forward pass uses them, attached to the parameters' gradients; `dropout` applies to
  /// the glimpse projection.
  std::shared_ptr<const GlimpseModules> modules(at::TensorOptions options, double dropout) const;

  /// Writes config.json, new_modules_gp.pt and new_modules_gp.safetensors into `dir` (created), in `dtype`.
  void save(const std::filesystem::path& dir, at::ScalarType dtype) const;

 private:
  TrainableModules(nlohmann::json config, const BaseShape& base);
  void adopt(const std::string& name, const at::Tensor& value);

  nlohmann::json json_;
  BaseShape base_;
  GlimpseConfig config_;
  std::map<std::string, at::Tensor> parameters_;
};

/// The base config.json with the fields of `pruning` added: what a new-modules config.json holds. Error for a
/// field that pruning does not know, naming the nearest known one.
nlohmann::json pruning_config(nlohmann::json base, const nlohmann::json& pruning);

}  // namespace glimpse
