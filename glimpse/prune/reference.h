#pragma once

#include "glimpse/prune/keep_rule.h"
#include "glimpse/prune/pruner.h"

namespace glimpse {

/// Keeps the tokens inside given boxes (method.md section 4, `use_ref_masks`): the mask replaces the
/// predictor, and cap and minimum apply image by image. An image without boxes keeps only the minimum
/// (`use_zero_masks`). Boxes as of box_masks.
class ReferencePruner : public Pruner {
 public:
  struct Options {
    KeepRule rule;
    int64_t layer = 0;
    Fields fields();
  };
  explicit ReferencePruner(Options options) : options_(std::move(options)) {}
  std::string name() const override { return "reference"; }
  nlohmann::json settings() const override { return Options(options_).fields().to_json(); }
  std::vector<Cut> cuts() const override { return {{Cut::Place::after, options_.layer, true}}; }
  Taps taps() const override {
    Taps taps;
    taps.boxes = true;
    return taps;
  }
  Selection select(const View& view, const Cut& cut, const Budget& budget) const override;

 private:
  Options options_;
};

}  // namespace glimpse
