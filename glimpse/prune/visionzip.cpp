#include "glimpse/prune/visionzip.h"

#include <algorithm>
#include <cmath>

#include "glimpse/prune/keep_rule.h"
#include "glimpse/prune/shares.h"

namespace glimpse {

namespace {

at::Tensor rows_of(const at::Tensor& x, const std::vector<int64_t>& index) {
  return x.index_select(0, at::tensor(index, at::kLong).to(x.device()));
}

}  // namespace

Fields VisionZip::Options::fields() {
  Fields fields;
  fields.add("dominant", dominant, "fraction of the visual tokens to keep as they are", {0, 1})
      .add("contextual", contextual, "fraction to merge the others into (at least one token)", {0, 1});
  return fields;
}

VisionZipChoice visionzip_choice(const at::Tensor& received, const at::Tensor& keys, int64_t dominant,
                                 int64_t contextual) {
  VisionZipChoice out;
  out.dominant = top_indices(received, dominant);
  const std::vector<int64_t> rest = others(received.size(0), out.dominant);
  const auto left = static_cast<int64_t>(rest.size());
  contextual = std::min(contextual, left);
  if (contextual == 0) return out;
  const int64_t step = left / contextual;
  for (int64_t i = 0; i < contextual; ++i) out.contextual.push_back(rest[i * step]);
  std::vector<int64_t> merged;
  std::set_difference(rest.begin(), rest.end(), out.contextual.begin(), out.contextual.end(),
                      std::back_inserter(merged));
  out.merged = assign(unit_rows(keys), merged, out.contextual);
  return out;
}

at::Tensor visionzip_merge(const at::Tensor& features, const VisionZipChoice& choice) {
  const Assigned assigned =
      sum_assigned(features, choice.merged, static_cast<int64_t>(choice.contextual.size()));
  return rows_of(features, choice.contextual).to(at::kFloat) + assigned.sum / assigned.count.clamp_min(1);
}

Selection VisionZip::select(const View& view, const Cut&, const Budget& budget) const {
  const auto contextual = [&](int64_t n) { return std::max<int64_t>(part_of(n, options_.contextual), 1); };
  const auto own = [&](int64_t n) { return part_of(n, options_.dominant) + contextual(n); };
  const at::Tensor received = view.vision_attention[0].received.index_select(0, view.living);
  const at::Tensor keys = view.vision_attention[0].keys.index_select(0, view.living);
  return select_by_image(view, budget, own, [&](const ImageShare& share) {
    int64_t merging = contextual(share.image.count());
    if (share.budgeted) {  // in the same proportion
      const double both = std::max(options_.dominant + options_.contextual, 1e-9);
      merging = std::llround(static_cast<double>(share.keep) * options_.contextual / both);
    }
    merging = std::clamp<int64_t>(merging, share.keep > 1 ? 1 : 0, share.keep);
    const auto mine = [&](const at::Tensor& t) { return t.narrow(0, share.first, share.living); };
    const VisionZipChoice choice =
        visionzip_choice(mine(received), mine(keys), share.keep - merging, merging);
    Selection out;
    out.keep = merge_indices(choice.dominant, choice.contextual);
    at::Tensor features = mine(view.hidden).to(at::kFloat);
    if (!choice.contextual.empty())
      features = features.index_copy(0, at::tensor(choice.contextual, at::kLong).to(features.device()),
                                     visionzip_merge(features, choice));
    out.features = rows_of(features, out.keep);
    return out;
  });
}

}  // namespace glimpse
