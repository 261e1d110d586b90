#include "glimpse/prune/reference.h"

#include <limits>

#include "glimpse/prune/box_masks.h"
#include "glimpse/prune/shares.h"

namespace glimpse {

Fields ReferencePruner::Options::fields() {
  Fields fields = rule.fields();
  fields.add("layer", layer, "cut after this layer", {0, 1e6});
  return fields;
}

Selection ReferencePruner::select(const View& view, const Cut&, const Budget& budget) const {
  check(!budget.of(view.total()), "reference: takes no budget; its boxes say what stays");
  check(std::ssize(view.boxes) == media_count(view.segments),
        "reference: needs a list of boxes for each of the ", media_count(view.segments), " images, got ",
        view.boxes.size(), " (--reference-boxes, or bboxs in the row)");
  constexpr float infinity = std::numeric_limits<float>::infinity();
  const std::vector<std::vector<uint8_t>> masks = box_masks(view.segments, view.boxes);
  std::vector<float> logits;
  for (const int64_t token : view.living) {
    const TokenPlace place = place_of(view.segments, token);
    const bool inside = token < view.total() &&  // a class token is in no box
                        masks[place.segment][place.row * view.segments[place.segment].cols + place.col];
    logits.push_back(inside ? infinity : -infinity);
  }
  const at::Tensor given = at::tensor(logits);
  Selection out;
  out.scores = given.sigmoid();
  for (const MediumRun& run : medium_runs(view))
    for (const int64_t index : options_.rule.apply(given.narrow(0, run.first, run.living)))
      out.keep.push_back(run.first + index);
  out.keep = merge_indices(out.keep, options_.rule.corners(view));
  return out;
}

}  // namespace glimpse
