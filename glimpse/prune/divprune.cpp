#include "glimpse/prune/divprune.h"

#include <algorithm>
#include <cmath>

#include "glimpse/nn/index_tensor.h"
#include "glimpse/prune/shares.h"

namespace glimpse {

Fields DivPrune::Options::fields() {
  Fields fields;
  fields.add("keep", keep, "fraction of the visual tokens to keep", {1e-9, 1});
  return fields;
}

namespace {

// nearest = max(nearest, row), which a NaN does not change.
void take_larger(at::Tensor& nearest, const at::Tensor& row) {
  if (!nearest.is_cpu()) {
    at::fmax_out(nearest, nearest, row);
    return;
  }
  float* const to = nearest.data_ptr<float>();
  const float* const from = row.const_data_ptr<float>();
  for (int64_t i = 0; i < nearest.numel(); ++i) to[i] = std::max(to[i], from[i]);
}

}  // namespace

std::vector<int64_t> divprune_order(const at::Tensor& features, int64_t count, int64_t at_once) {
  const int64_t n = features.size(0);
  count = std::min(count, n);
  if (count <= 0) return {};
  constexpr float chosen = 2;  // above every cosine
  const Cosines cosines(unit_rows(features), at_once);
  at::Tensor order = at::empty({count}, features.options().dtype(at::kLong));
  // First the token whose nearest neighbour is farthest.
  at::Tensor nearest = cosines.nearest(), newest = nearest.argmin(0, true);
  nearest.fill_(-chosen);  // from here on each token's cosine with its nearest chosen one
  // What is chosen stays beside the features: a device that is asked for every choice would wait every time.
  for (int64_t i = 0; i < count; ++i) {
    order.narrow(0, i, 1).copy_(newest);
    take_larger(nearest, cosines.row(newest));
    strike(nearest, newest, chosen);
    newest = nearest.argmin(0, true);
  }
  return list_of(order);
}

Selection DivPrune::select(const View& view, const Cut&, const Budget& budget) const {
  // Python's round: half to even.
  const auto own = [&](int64_t n) {
    return static_cast<int64_t>(std::nearbyint(options_.keep * static_cast<double>(n)));
  };
  return select_by_segment(view, budget, own, [&](const SegmentShare& share) {
    Selection out{divprune_order(view.hidden.narrow(0, share.first, share.living), share.keep), {}, {}};
    std::sort(out.keep.begin(), out.keep.end());
    return out;
  });
}

double DivPrune::operations(const Cut&, const CutSizes& sizes) const {
  const auto n = static_cast<double>(sizes.living), d = static_cast<double>(sizes.width);
  const double rows = sizes.living > Cosines::most_at_once ? 2 * static_cast<double>(sizes.kept) * n * d : 0;
  return Cosines::operations(n, d) + rows;
}

}  // namespace glimpse
