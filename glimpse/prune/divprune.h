#pragma once

#include "glimpse/prune/pruner.h"
#include "glimpse/prune/similarity.h"

namespace glimpse {

/// DivPrune (arXiv 2503.02175): projected tokens that are as different from each other as possible, greedily
/// and image by image.
class DivPrune : public Pruner {
 public:
  struct Options {
    double keep = 0.111;
    Fields fields();
  };
  explicit DivPrune(Options options) : options_(options) {}
  std::string name() const override { return "divprune"; }
  nlohmann::json settings() const override { return Options(options_).fields().to_json(); }
  std::vector<Cut> cuts() const override {
    return {{.place = Cut::Place::before, .renumbers = true, .reads_text = false}};
  }
  Selection select(const View& view, const Cut& cut, const Budget& budget) const override;
  double operations(const Cut& cut, const CutSizes& sizes) const override;

 private:
  Options options_;
};

/// The order in which DivPrune chooses `count` of the tokens [n, D]. Distance is 1 - cosine, ties go to the
/// lower index. Where the reference would repeat a token (fewer distinct vectors than picks) this takes
/// another. `at_once`: see Cosines.
std::vector<int64_t> divprune_order(const at::Tensor& features, int64_t count,
                                    int64_t at_once = Cosines::most_at_once);

}  // namespace glimpse
