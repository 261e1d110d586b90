#include "glimpse/prune/shares.h"

#include <algorithm>
#include <cmath>

#include "glimpse/prune/keep_rule.h"

namespace glimpse {

int64_t part_of(int64_t count, double ratio) {
  return static_cast<int64_t>(static_cast<double>(count) * ratio);
}

int64_t count_of(int64_t count, double amount) {
  return amount < 1 ? part_of(count, amount) : static_cast<int64_t>(amount);
}

Budget grown(const Budget& budget, int64_t total, double factor) {
  const auto grow = [&](int64_t count) {
    return static_cast<int64_t>(
        std::min(std::round(static_cast<double>(count) * factor), static_cast<double>(total)));
  };
  Budget out;
  if (const auto count = budget.of(total)) out.count = grow(*count);
  for (const int64_t count : budget.counts) out.counts.push_back(grow(count));
  return out;
}

std::vector<ImageShare> image_shares(const View& view, const Budget& budget,
                                     const std::function<int64_t(int64_t)>& own) {
  const auto given = budget.of(view.images);
  std::vector<ImageShare> shares;
  int64_t first = 0;
  for (size_t i = 0; i < view.images.size(); ++i) {
    const ImageSpan& image = view.images[i];
    int64_t last = first;
    while (last < view.count() && place_of(view.images, view.living[last]).image == static_cast<int64_t>(i))
      ++last;
    const int64_t wanted = given ? (*given)[i] : std::max<int64_t>(own(image.count()), 1);
    shares.push_back({image, first, last - first, std::clamp<int64_t>(wanted, 0, last - first),
                      given.has_value(), last > first && view.living[first] >= view.total()});
    first = last;
  }
  return shares;
}

Selection select_by_image(const View& view, const Budget& budget, const std::function<int64_t(int64_t)>& own,
                          const std::function<Selection(const ImageShare&)>& choose) {
  Selection out;
  std::vector<at::Tensor> features;
  for (const ImageShare& share : image_shares(view, budget, own)) {
    const Selection chosen = choose(share);
    for (const int64_t index : chosen.keep) out.keep.push_back(share.first + index);
    if (chosen.features.defined()) features.push_back(chosen.features);
  }
  if (!features.empty()) out.features = at::cat(features);
  return out;
}

std::vector<int64_t> top_tokens(const View& view, const at::Tensor& scores, const Budget& budget,
                                int64_t own) {
  if (budget.counts.empty())
    return top_indices(scores, budget.of(view.total()).value_or(std::max<int64_t>(own, 1)));
  const at::Tensor own_scores = scores.cpu();
  const auto choose = [&](const ImageShare& share) {
    return Selection{top_indices(own_scores.narrow(0, share.first, share.living), share.keep), {}, {}};
  };
  return select_by_image(view, budget, {}, choose).keep;
}

}  // namespace glimpse
