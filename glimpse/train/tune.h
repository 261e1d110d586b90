#pragma once

#include "glimpse/prune/glimpse.h"
#include "glimpse/train/frozen_vision.h"
#include "glimpse/train/group.h"
#include "glimpse/train/rollout.h"
#include "glimpse/train/row_scores.h"
#include "glimpse/train/trainable.h"

namespace glimpse {

/// What an adapter's training has beside its settings.
struct TuneSetup {
  std::vector<int64_t> ends;                      ///< ids that end an answer
  uint64_t seed = 0;                              ///< of a new adapter
  std::filesystem::path judged;                   ///< where a judge's scores are kept
  std::string base_model;                         ///< noted in the adapter
  std::shared_ptr<const GlimpseModules> modules;  ///< for rows without boxes; null: there are none
  std::unique_ptr<PrefixCache> pictures;          ///< as FrozenVision has it
};

/// An adapter of the language model in training on prompts whose visual tokens outside the rows' boxes are
/// pruned; of a row without boxes, those that glimpse token and predictor drop on the base model, the adapter
/// off. The model must outlive it, and has the adapter attached.
class TrainableAdapter : public Trainable {
 public:
  TrainableAdapter(Vlm& model, TuneOptions options, TuneSetup setup);

  const std::map<std::string, at::Tensor>& parameters() const override { return parameters_; }
  std::vector<std::string> value_names() const override;
  void learn(std::span<const Example> examples, const LossOptions& options, const Take& take) override;
  void save(const std::filesystem::path& dir, at::ScalarType dtype) const override;
  /// What was drawn last, for people: a prompt's question, its answers and their scores.
  std::string sample() const override { return sample_; }
  void check_example(const Example& example) const override;
  std::optional<ShownAnswer> answer(const Example& example) override;

 private:
  Group group_of(const Example& example);
  StartedPrompt started(const Example& example);
  const std::vector<int64_t>& predicted(const Example& example);
  void score(const Example& example, Group& group);
  void learn_from_scores(std::span<const Example> examples, const Take& take);
  void learn_from_answers(std::span<const Example> examples, const Take& take);

  Vlm& model_;
  const TuneOptions options_;
  const std::string base_model_;
  const std::shared_ptr<const GlimpseModules> modules_;
  GroupLimits limits_;
  GroupOptions group_options_;
  LoraAdapter adapter_;
  int64_t shared_layers_ = 0;  // that a prompt goes through once for adapter and base model
  std::map<std::string, at::Tensor> parameters_;
  FrozenVision vision_;
  RowScores scores_;
  std::map<const TrainRow*, std::vector<int64_t>> predicted_;  // the same in every epoch
  std::string sample_;
};

}  // namespace glimpse
