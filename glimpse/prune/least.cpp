#include "glimpse/prune/least.h"

#include "glimpse/base/check.h"

namespace glimpse {

Selection LeastPruner::select(const View& view, const Cut&, const Budget& budget) const {
  const auto count = budget.of(view.total());
  check(count.has_value(), "pruning: least needs a budget (--budget-from, or a fraction to keep)");
  const at::Tensor decisive = logits(view)[-1].cpu();
  return {top_indices(-decisive, std::min(*count, view.count())), {}, decisive.sigmoid()};
}

}  // namespace glimpse
