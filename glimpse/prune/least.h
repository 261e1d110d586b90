#pragma once

#include "glimpse/prune/glimpse.h"

namespace glimpse {

/// The opposite of GlimpsePrune, for comparison: of as many tokens as the budget says, those that the
/// predictor thinks least important. Needs a budget.
class LeastPruner : public GlimpsePruner {
 public:
  explicit LeastPruner(std::shared_ptr<const GlimpseModules> modules)
      : GlimpsePruner(std::move(modules), KeepRule()) {}
  std::string name() const override { return "least"; }
  nlohmann::json settings() const override { return nlohmann::json::object(); }
  Selection select(const View& view, const Cut& cut, const Budget& budget) const override;
};

}  // namespace glimpse
