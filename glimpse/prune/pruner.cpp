#include "glimpse/prune/pruner.h"

#include <algorithm>
#include <cmath>

namespace glimpse {

TokenPlace place_of(std::span<const ImageSpan> images, int64_t source) {
  const int64_t total = images.back().first + images.back().count();
  if (source >= total) {
    const ImageSpan& image = images[source - total];
    return {source - total, image.rows / 2, image.cols / 2};
  }
  const auto next =
      std::upper_bound(images.begin(), images.end(), source,
                       [](int64_t token, const ImageSpan& image) { return token < image.first; });
  const ImageSpan& image = *std::prev(next);
  const int64_t place = source - image.first;
  return {std::prev(next) - images.begin(), place / image.cols, place % image.cols};
}

std::vector<TokenPlace> View::places() const {
  std::vector<TokenPlace> out;
  for (const int64_t source : living) out.push_back(place_of(images, source));
  return out;
}

std::optional<int64_t> Budget::of(int64_t total) const {
  if (!counts.empty()) {
    int64_t sum = 0;
    for (const int64_t each : counts) {
      check(each >= 0, "budget: count ", each, " is negative");
      sum += std::min(each, total);
    }
    return std::min(sum, total);
  }
  check(!count || *count >= 0, "budget: count ", count.value_or(0), " is negative");
  if (count) return std::min(*count, total);
  if (!keep) return std::nullopt;
  check(*keep > 0 && *keep <= 1, "budget: keep ", *keep, " is not a fraction in (0, 1]");
  return std::max<int64_t>(1, static_cast<int64_t>(std::floor(*keep * static_cast<double>(total))));
}

std::optional<std::vector<int64_t>> Budget::of(std::span<const ImageSpan> images) const {
  check(counts.empty() || counts.size() == images.size(), "budget: ", counts.size(), " counts for ",
        images.size(), " images");
  int64_t total = 0, seen = 0, given = 0;
  for (const ImageSpan& image : images) total += image.count();
  const auto all = of(total);
  if (!counts.empty()) return counts;
  if (!all) return std::nullopt;
  std::vector<int64_t> shares;
  for (const ImageSpan& image : images) {
    seen += image.count();
    const int64_t up_to_here = *all * seen / std::max<int64_t>(total, 1);
    shares.push_back(up_to_here - given);
    given = up_to_here;
  }
  return shares;
}

}  // namespace glimpse
