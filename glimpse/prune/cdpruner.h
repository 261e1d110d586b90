#pragma once

#include "glimpse/prune/pruner.h"

namespace glimpse {

/// CDPruner (arXiv 2506.10967): tokens that are different from each other and relevant to the question, by
/// greedy search for the likeliest set of a determinantal point process. Relevance is the similarity of the
/// projected tokens to the question's mean input embedding, as OpenVINO GenAI has it for models without a
/// CLIP text encoder.
class CdPruner : public Pruner {
 public:
  struct Options {
    double keep = 0.111;
    Fields fields();
  };
  explicit CdPruner(Options options) : options_(options) {}
  std::string name() const override { return "cdpruner"; }
  nlohmann::json settings() const override { return Options(options_).fields().to_json(); }
  std::vector<Cut> cuts() const override { return {{.place = Cut::Place::before, .renumbers = true}}; }
  Selection select(const View& view, const Cut& cut, const Budget& budget) const override;

 private:
  Options options_;
};

/// Relevance [n], scaled to (0, 1]: mean cosine of image [n, P] with the text rows [M, P]; negated for CLIP's
/// embeddings, whose patches are the more similar to a text the less they show of it.
at::Tensor cdpruner_relevance(const at::Tensor& image, const at::Tensor& text, bool negate);

/// The order in which CDPruner chooses `count` of features [n, D] with relevance [n]. Where the reference
/// would give NaN (more picks than the kernel's rank) this goes on with the most relevant ones.
std::vector<int64_t> cdpruner_order(const at::Tensor& features, const at::Tensor& relevance, int64_t count);

}  // namespace glimpse
