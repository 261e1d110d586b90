#include "glimpse/prune/keep_rule.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>

namespace glimpse {

std::vector<int64_t> top_indices(const at::Tensor& values, int64_t count) {
  at::Tensor wide = values.to(at::kCPU, at::kFloat).contiguous();
  // A NaN compares with nothing, which sorting does not survive: it ranks last.
  wide = wide.masked_fill(wide.isnan(), -std::numeric_limits<float>::infinity());
  const float* value = wide.const_data_ptr<float>();
  std::vector<int64_t> order(wide.numel());
  std::iota(order.begin(), order.end(), int64_t{0});
  count = std::clamp<int64_t>(count, 0, wide.numel());
  const auto larger = [&](int64_t a, int64_t b) {
    return value[a] != value[b] ? value[a] > value[b] : a < b;
  };
  std::partial_sort(order.begin(), order.begin() + count, order.end(), larger);
  order.resize(count);
  std::sort(order.begin(), order.end());
  return order;
}

std::vector<int64_t> merge_indices(const std::vector<int64_t>& a, const std::vector<int64_t>& b) {
  std::vector<int64_t> out;
  std::set_union(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(out));
  return out;
}

Fields KeepRule::fields() {
  Fields fields;
  fields.add("threshold", threshold, "keep visual tokens whose probability is above this", {0, 1})
      .add("max_keep", max_keep, "keep at most this fraction of the visual tokens (none: no cap)", {0, 1})
      .add("min_keep", min_keep, "keep at least this many visual tokens (none: no minimum)", {0, 1e9})
      .add("anchors", anchors, "grid corners always kept (single images)")
      .one_of({"tl", "tr", "bl", "br"});
  return fields;
}

std::vector<int64_t> KeepRule::apply(const at::Tensor& logits) const {
  const at::Tensor wide = logits.to(at::kCPU, at::kFloat).contiguous();
  const float* value = wide.const_data_ptr<float>();
  const int64_t total = wide.numel();
  // On logits rather than probabilities: the sigmoid of a low-precision logit rounds.
  const float limit = static_cast<float>(std::log(threshold / (1.0 - threshold)));
  std::vector<int64_t> keep;
  for (int64_t i = 0; i < total; ++i)
    if (value[i] > limit) keep.push_back(i);
  const auto kept = [&] {
    return static_cast<double>(keep.size()) / static_cast<double>(std::max<int64_t>(total, 1));
  };
  if (max_keep && kept() > *max_keep)
    keep = top_indices(wide, static_cast<int64_t>(*max_keep * static_cast<double>(total)));
  if (min_keep && static_cast<int64_t>(keep.size()) < *min_keep)
    keep = merge_indices(keep, top_indices(wide, *min_keep));
  return keep;
}

std::vector<int64_t> KeepRule::corners(const View& view) const {
  std::vector<int64_t> out;
  if (anchors.empty() || view.segments.size() != 1) return out;
  const Segment& segment = view.segments[0];
  for (const std::string& anchor : anchors) {
    const int64_t row = anchor[0] == 't' ? 0 : segment.rows - 1,
                  col = anchor[1] == 'l' ? 0 : segment.cols - 1;
    const auto found = std::find(view.living.begin(), view.living.end(), row * segment.cols + col);
    if (found != view.living.end()) out.push_back(found - view.living.begin());
  }
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

}  // namespace glimpse
