#pragma once

#include <string>

#include "glimpse/prune/shares.h"
#include "glimpse/prune/similarity.h"

namespace glimpse {

/// CDPruner (arXiv 2506.10967): tokens that are different from each other and relevant to the question, by
/// greedy search for the likeliest set of a determinantal point process. Relevance compares CLIP's embeddings
/// of patches and question; in models without CLIP's text tower the projected tokens and the question's mean
/// input embedding, as OpenVINO GenAI has it.
class CdPruner : public Pruner {
 public:
  struct Options {
    double keep = 0.111;
    std::string relevance = "words";  ///< "clip", or "words": by the language model's input embeddings
    bool text_tower = false;          ///< the model has one, so that "clip" can be asked for
    Fields fields();
  };
  /// Error for a relevance that there is not, or not in this model.
  explicit CdPruner(Options options);
  std::string name() const override { return "cdpruner"; }
  nlohmann::json settings() const override { return Options(options_).fields().to_json(); }
  std::vector<Cut> cuts() const override { return {{.place = Cut::Place::before, .renumbers = true}}; }
  Taps taps() const override;
  Selection select(const View& view, const Cut& cut, const Budget& budget) const override;
  double operations(const Cut& cut, const CutSizes& sizes) const override;

 private:
  at::Tensor relevance(const View& view, const SegmentShare& share) const;
  Options options_;
};

/// Relevance [n], scaled to (0, 1]: mean cosine of image [n, P] with the text rows [M, P]; negated for CLIP's
/// embeddings, whose patches are the more similar to a text the less they show of it.
at::Tensor cdpruner_relevance(const at::Tensor& image, const at::Tensor& text, bool negate);

/// The order in which CDPruner chooses `count` of features [n, D] with relevance [n]. Where the reference
/// would give NaN (more picks than the kernel's rank) this goes on with the most relevant ones. `at_once`:
/// see Cosines.
std::vector<int64_t> cdpruner_order(const at::Tensor& features, const at::Tensor& relevance, int64_t count,
                                    int64_t at_once = Cosines::most_at_once);

}  // namespace glimpse
