#pragma once

#include "glimpse/train/lessons.h"
#include "glimpse/train/trainable.h"

namespace glimpse {

/// A scout in training on a frozen model (docs/early_cut.md): Dice and cross entropy against the boxes of
/// rows that have some, and on every row cross entropy with what its teacher, a trained predictor inside the
/// language model, thinks of the same question. One within the encoder also learns which windows the boxes
/// touch, and what the projected tokens will be.
class TrainableScout : public Trainable {
 public:
  /// New: projections Xavier-uniform with zero bias, norms one, a match that begins as the likeness of words
  /// and projected tokens. `scout`: settings of ScoutConfig. The model must outlive it.
  static std::unique_ptr<TrainableScout> create(const Vlm& model, const nlohmann::json& scout,
                                                LessonOptions lessons, uint64_t seed);
  /// Goes on from the scout in `dir`: the one within the encoder if `scout` says so or there is no other.
  static std::unique_ptr<TrainableScout> load(const Vlm& model, const std::filesystem::path& dir,
                                              const nlohmann::json& scout, LessonOptions lessons);

  const std::map<std::string, at::Tensor>& parameters() const override { return parameters_; }
  std::vector<std::string> value_names() const override { return loss_names(); }
  void learn(std::span<const Example> examples, const LossOptions& options, const Take& take) override;
  std::vector<int64_t> keep(const at::Tensor& logits) const override;
  std::shared_ptr<const Pruner> pruner() const override;
  void save(const std::filesystem::path& dir, at::ScalarType dtype) const override;

  TrainableScout(const Vlm& model, ScoutConfig config, LessonOptions lessons, const Weights& weights);

 private:
  Scout scout() const;

  const Vlm& model_;
  ScoutConfig config_;
  std::unique_ptr<Lessons> lessons_;
  std::map<std::string, at::Tensor> parameters_;
};

}  // namespace glimpse
