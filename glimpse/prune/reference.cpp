#include "glimpse/prune/reference.h"

#include <limits>

#include "glimpse/prune/shares.h"

namespace glimpse {

Fields ReferencePruner::Options::fields() {
  Fields fields = rule.fields();
  fields.add("layer", layer, "cut after this layer", {0, 1e6});
  return fields;
}

Selection ReferencePruner::select(const View& view, const Cut&, const Budget& budget) const {
  check(!budget.of(view.total()), "reference: takes no budget; its boxes say what stays");
  check(view.boxes.size() == view.images.size(), "reference: needs a list of boxes for each of the ",
        view.images.size(), " images, got ", view.boxes.size(), " (--reference-boxes, or bboxs in the row)");
  constexpr float infinity = std::numeric_limits<float>::infinity();
  const std::vector<TokenPlace> places = view.places();
  Selection out;
  out.scores = at::zeros({view.count()});
  auto boxes = view.boxes.begin();
  for (const ImageShare& share : image_shares(view, {}, [](int64_t n) { return n; })) {
    const ImageSpan& image = share.image;
    const std::vector<uint8_t> mask =
        boxes_to_mask(*boxes++, static_cast<int>(image.rows), static_cast<int>(image.cols), image.area);
    std::vector<float> logits;
    for (int64_t token = share.first; token < share.first + share.living; ++token)
      logits.push_back(mask[places[token].row * image.cols + places[token].col] ? infinity : -infinity);
    const at::Tensor given = at::tensor(logits);
    if (share.class_token) given[0] = -infinity;  // it is in no box
    for (const int64_t index : options_.rule.apply(given)) out.keep.push_back(share.first + index);
    out.scores.narrow(0, share.first, share.living).copy_(given.sigmoid());
  }
  out.keep = merge_indices(out.keep, options_.rule.corners(view));
  return out;
}

}  // namespace glimpse
