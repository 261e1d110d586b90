#pragma once

#include "glimpse/prune/pruner.h"

namespace glimpse {

/// PyramidDrop (arXiv 2410.17247): before each listed layer the visual tokens that the last prompt token
/// would attend to most. Earlier layers keep what they saw. A budget sets what the last cut leaves; the cuts
/// before it then go there by equal factors.
class PyramidDrop : public Pruner {
 public:
  struct Options {
    std::vector<int64_t> layers = {8, 16, 24};
    std::vector<double> keep = {0.5, 0.25, 0.125};
    Fields fields();
  };
  /// Error unless layers and fractions pair up.
  explicit PyramidDrop(Options options);
  std::string name() const override { return "pyramiddrop"; }
  nlohmann::json settings() const override { return Options(options_).fields().to_json(); }
  std::vector<Cut> cuts() const override;
  Selection select(const View& view, const Cut& cut, const Budget& budget) const override;

 private:
  Budget on_the_way(int64_t stage, int64_t total, const Budget& budget) const;
  Options options_;
};

/// An Error unless `layers` ascend from 1 on and there are as many `fractions`.
void check_stages(const std::vector<int64_t>& layers, const std::vector<double>& fractions,
                  std::string_view owner);
/// Which of `layers` a cut stands before.
int64_t stage_of(const std::vector<int64_t>& layers, const Cut& cut);

}  // namespace glimpse
