#include "glimpse/prune/visionzip.h"

#include <algorithm>
#include <cmath>

#include "glimpse/prune/keep_rule.h"
#include "glimpse/prune/shares.h"

namespace glimpse {

Fields VisionZip::Options::fields() {
  Fields fields;
  fields
      .add("dominant", dominant,
           "fraction of the visual tokens to keep as they are, a class token among them; from 1 on their "
           "number",
           {0, 1e6})
      .add("contextual", contextual,
           "fraction, at least one token, to merge the others into; from 1 on their number", {0, 1e6});
  return fields;
}

VisionZip::VisionZip(Options options) : options_(options) {
  for (const double value : {options.dominant, options.contextual})
    check(value < 1 || value == std::floor(value), "visionzip: ", value,
          " is neither a fraction below 1 nor a number of tokens");
  check(options.contextual > 0 || !options.class_token,
        "visionzip: contextual is 0, but the other tokens need one to merge into");
}

int64_t VisionZip::Options::merged(int64_t count) const {
  return std::max<int64_t>(count_of(count, contextual), 1);
}

int64_t VisionZip::Options::kept(int64_t count) const {
  return count_of(count, dominant) + merged(count);
}

double VisionZip::Options::merging_part(int64_t count) const {
  const auto amount = [&](double value) { return value < 1 ? value * static_cast<double>(count) : value; };
  return amount(contextual) / std::max(amount(dominant) + amount(contextual), 1e-9);
}

VisionZipChoice visionzip_choice(const at::Tensor& received, const at::Tensor& keys, int64_t dominant,
                                 int64_t contextual) {
  VisionZipChoice out;
  out.dominant = top_indices(received, dominant);
  const std::vector<int64_t> rest = others(received.size(0), out.dominant);
  const auto left = static_cast<int64_t>(rest.size());
  check(contextual <= left, "visionzip: ", contextual, " contextual tokens were asked for, but beside ",
        out.dominant.size(), " dominant ones an image has ", left);
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
  const auto own = [&](int64_t n) { return options_.kept(n); };
  const at::Tensor received = view.vision_attention[0].received.index_select(0, view.index);
  const at::Tensor keys = view.vision_attention[0].keys.index_select(0, view.index);
  return select_by_segment(view, budget, own, [&](const SegmentShare& share) {
    const int64_t count = share.segment.count(), keep = share.keep;
    int64_t merging = options_.merged(count);
    if (share.budgeted) {
      merging = std::llround(static_cast<double>(keep) * options_.merging_part(count));
    } else {
      check(own(count) <= count, "visionzip: ", own(count) - merging, " dominant and ", merging,
            " contextual tokens are more than the ", count, " of an image");
    }
    merging = std::clamp<int64_t>(merging, keep > 1 ? 1 : 0, keep);
    // The class token is dominant; only where all patches stay there is no place for it.
    const int64_t before = share.class_token ? 1 : 0, patches = share.living - before;
    const bool with_class = share.class_token && keep > 0 && keep != patches;
    const auto of_patches = [&](const at::Tensor& t) { return t.narrow(0, share.first + before, patches); };
    VisionZipChoice choice = visionzip_choice(of_patches(received), of_patches(keys),
                                              keep - merging - (with_class ? 1 : 0), merging);
    const at::Tensor merged = visionzip_merge(of_patches(view.hidden), choice);
    for (auto* const list : {&choice.dominant, &choice.contextual})
      for (int64_t& index : *list) index += before;
    Selection out;
    if (with_class) {
      out.keep = {0};
      for (const auto& list : {choice.dominant, choice.contextual})
        out.keep.insert(out.keep.end(), list.begin(), list.end());
    } else {
      out.keep = merge_indices(choice.dominant, choice.contextual);
    }
    const at::Tensor hidden = view.hidden.narrow(0, share.first, share.living).to(at::kFloat);
    const at::Tensor into = at::tensor(choice.contextual, at::kLong).to(hidden.device());
    out.features = rows_of(hidden.index_copy(0, into, merged), out.keep);
    return out;
  });
}

double VisionZip::operations(const Cut&, const CutSizes& sizes) const {
  const auto kept = static_cast<double>(sizes.kept);
  const double targets = std::max(1.0, std::round(kept * options_.merging_part(sizes.visual)));
  return 2 * (static_cast<double>(sizes.living) - kept) * targets * static_cast<double>(sizes.vision_head);
}

}  // namespace glimpse
