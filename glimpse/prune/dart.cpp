#include "glimpse/prune/dart.h"

#include <limits>

#include "glimpse/nn/flop_count.h"
#include "glimpse/prune/keep_rule.h"
#include "glimpse/prune/shares.h"
#include "glimpse/prune/similarity.h"

namespace glimpse {

Fields Dart::Options::fields() {
  Fields fields;
  fields.add("keep", keep, "fraction of the visual tokens to keep", {1e-9, 1})
      .add("image_pivots", image_pivots, "visual tokens that the others are compared with", {0, 1e6})
      .add("text_pivots", text_pivots, "text tokens that they are compared with", {0, 1e6});
  return fields;
}

std::vector<int64_t> dart_tokens(const at::Tensor& features, const at::Tensor& text, int64_t count,
                                 const Dart::Options& options) {
  const auto l1 = [](const at::Tensor& x) { return x.to(at::kFloat).abs().sum(1); };
  const at::Tensor lengths = at::cat({l1(features), l1(text)}).cpu();
  const int64_t n = features.size(0);
  std::vector<int64_t> keep = top_indices(lengths.narrow(0, 0, n), std::min(options.image_pivots, count));
  const std::vector<int64_t> words = top_indices(lengths.narrow(0, n, text.size(0)), options.text_pivots);
  const at::Tensor pivots =
      unit_rows(at::cat({rows_of(features, keep), rows_of(text, words).to(features.scalar_type())}));
  flop_count::add(2 * pivots.size(0) * features.numel());
  at::Tensor difference = -at::mm(pivots, unit_rows(features).t()).nan_to_num(2).cpu();  // [pivots, n]
  const auto left = [&] { return count - static_cast<int64_t>(keep.size()); };
  check(left() == 0 || pivots.size(0) > 0, "dart: needs a pivot: image_pivots and text_pivots are both 0");
  for (int64_t p = 0; p < pivots.size(0); ++p) {
    const int64_t share = (left() + pivots.size(0) - p - 1) / (pivots.size(0) - p);
    const at::Tensor taken = at::tensor(keep, at::kLong);
    const at::Tensor free = difference[p].index_fill(0, taken, -std::numeric_limits<float>::infinity());
    keep = merge_indices(keep, top_indices(free, share));
  }
  return keep;
}

Selection Dart::select(const View& view, const Cut&, const Budget& budget) const {
  const auto own = [&](int64_t n) { return part_of(n, options_.keep); };
  return select_by_segment(view, budget, own, [&](const SegmentShare& share) {
    return Selection{
        dart_tokens(view.hidden.narrow(0, share.first, share.living), view.text_hidden, share.keep, options_),
        {},
        {}};
  });
}

double Dart::operations(const Cut&, const CutSizes& sizes) const {
  const int64_t pivots = std::min(options_.image_pivots, sizes.kept) + options_.text_pivots;
  return 2.0 * static_cast<double>(pivots) * static_cast<double>(sizes.living) *
         static_cast<double>(sizes.width);
}

}  // namespace glimpse
