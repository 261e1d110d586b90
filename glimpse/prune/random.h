#pragma once

#include "glimpse/prune/pruner.h"

namespace glimpse {

/// Keeps a random subset, for comparison: what any method must beat at the same budget. The same for the same
/// pictures and seed, whatever is asked about them.
class RandomPruner : public Pruner {
 public:
  struct Options {
    double keep = 0.111;
    int64_t seed = 0;
    int64_t layer = -1;
    Fields fields();
  };
  explicit RandomPruner(Options options) : options_(options) {}
  std::string name() const override { return "random"; }
  nlohmann::json settings() const override { return Options(options_).fields().to_json(); }
  std::vector<Cut> cuts() const override;
  Taps taps() const override;
  Selection select(const View& view, const Cut& cut, const Budget& budget) const override;

 private:
  Options options_;
};

}  // namespace glimpse
