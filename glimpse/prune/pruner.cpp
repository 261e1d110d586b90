#include "glimpse/prune/pruner.h"

#include <algorithm>
#include <cmath>

namespace glimpse {

std::optional<int64_t> Budget::of(int64_t total) const {
  check(!count || *count >= 0, "budget: count ", count.value_or(0), " is negative");
  if (count) return std::min(*count, total);
  if (!keep) return std::nullopt;
  check(*keep > 0 && *keep <= 1, "budget: keep ", *keep, " is not a fraction in (0, 1]");
  return std::max<int64_t>(1, static_cast<int64_t>(std::floor(*keep * static_cast<double>(total))));
}

}  // namespace glimpse
