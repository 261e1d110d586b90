#pragma once

#include "glimpse/train/group.h"
#include "glimpse/train/rollout.h"
#include "glimpse/train/trainable.h"

namespace glimpse {

/// An adapter of the language model in training on prompts whose visual tokens outside the rows' boxes are
/// pruned. `judged`: where a judge's scores are kept. `ends`: ids that end an answer. The model must outlive
/// it, and has the adapter attached.
class TrainableAdapter : public Trainable {
 public:
  TrainableAdapter(Vlm& model, TuneOptions options, std::vector<int64_t> ends, uint64_t seed,
                   const std::filesystem::path& judged, std::string base_model);

  const std::map<std::string, at::Tensor>& parameters() const override { return parameters_; }
  std::vector<std::string> value_names() const override;
  std::vector<Learned> learn(std::span<const Example> examples, const LossOptions& options) override;
  void save(const std::filesystem::path& dir, at::ScalarType dtype) const override;
  /// What was drawn last, for people: a prompt's question, its answers and their scores.
  std::string sample() const override { return sample_; }
  void check_example(const Example& example) const override;

 private:
  const std::vector<std::string>& scores_of(const TrainRow& row) const {
    return row.scores.empty() ? options_.scores : row.scores;
  }
  Group group_of(const Example& example) const;
  void score(const Example& example, Group& group);
  std::vector<Learned> learn_from_scores(std::span<const Example> examples);
  Learned learn_from_answer(const Example& example);

  Vlm& model_;
  const TuneOptions options_;
  const std::string base_model_;
  GroupLimits limits_;
  GroupOptions group_options_;
  LoraAdapter adapter_;
  std::map<std::string, at::Tensor> parameters_;
  std::optional<Judge> judge_;
  std::string sample_;
};

}  // namespace glimpse
