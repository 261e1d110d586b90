#include "glimpse/prune/divprune.h"

#include <algorithm>
#include <cmath>

#include "glimpse/prune/shares.h"

namespace glimpse {

Fields DivPrune::Options::fields() {
  Fields fields;
  fields.add("keep", keep, "fraction of the visual tokens to keep", {1e-9, 1});
  return fields;
}

std::vector<int64_t> divprune_order(const at::Tensor& features, int64_t count, int64_t at_once) {
  const int64_t n = features.size(0);
  count = std::min(count, n);
  if (count <= 0) return {};
  constexpr float chosen = 2;  // above every cosine
  const Cosines cosines(unit_rows(features), at_once);
  // First the token whose nearest neighbour is farthest.
  std::vector<int64_t> order = {cosines.nearest().argmin().item<int64_t>()};
  std::vector<float> nearest(n, -chosen);  // each token's cosine with its nearest chosen one
  while (true) {
    const int64_t newest = order.back();
    const at::Tensor row = cosines.row(newest);
    const float* const cosine = row.const_data_ptr<float>();
    for (int64_t i = 0; i < n; ++i) nearest[i] = std::max(nearest[i], cosine[i]);
    nearest[newest] = chosen;
    if (static_cast<int64_t>(order.size()) == count) return order;
    order.push_back(std::min_element(nearest.begin(), nearest.end()) - nearest.begin());
  }
}

Selection DivPrune::select(const View& view, const Cut&, const Budget& budget) const {
  // Python's round: half to even.
  const auto own = [&](int64_t n) {
    return static_cast<int64_t>(std::nearbyint(options_.keep * static_cast<double>(n)));
  };
  return select_by_image(view, budget, own, [&](const ImageShare& share) {
    Selection out{divprune_order(view.hidden.narrow(0, share.first, share.living), share.keep), {}, {}};
    std::sort(out.keep.begin(), out.keep.end());
    return out;
  });
}

}  // namespace glimpse
