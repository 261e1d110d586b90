#pragma once

#include "glimpse/prune/pruner.h"

namespace glimpse {

/// DART (arXiv 2502.11494) on embeddings: tokens that duplicate a few pivots least. The image tokens of
/// highest L1 norm are pivots and stay; the text rows of highest L1 norm are pivots too; then every pivot in
/// turn takes its share of the tokens least similar to it. Image by image, in proportion to their sizes.
class Dart : public Pruner {
 public:
  struct Options {
    double keep = 0.111;
    int64_t image_pivots = 4, text_pivots = 4;
    Fields fields();
  };
  explicit Dart(Options options) : options_(options) {}
  std::string name() const override { return "dart"; }
  nlohmann::json settings() const override { return Options(options_).fields().to_json(); }
  std::vector<Cut> cuts() const override {
    return {{.place = Cut::Place::before, .renumbers = true, .reads_text = options_.text_pivots > 0}};
  }
  Selection select(const View& view, const Cut& cut, const Budget& budget) const override;
  double operations(const Cut& cut, const CutSizes& sizes) const override;

 private:
  Options options_;
};

/// The `count` tokens of [n, D] that DART keeps, ascending, given the text rows [T, D].
std::vector<int64_t> dart_tokens(const at::Tensor& features, const at::Tensor& text, int64_t count,
                                 const Dart::Options& options);

}  // namespace glimpse
