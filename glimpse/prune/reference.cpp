#include "glimpse/prune/reference.h"

#include <limits>

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
  const at::Tensor living = view.living.cpu();
  Selection out;
  out.scores = at::zeros({living.size(0)});
  int64_t begin = 0;
  for (size_t i = 0; i < view.images.size(); ++i) {
    const ImageSpan& image = view.images[i];
    const std::vector<uint8_t> mask =
        boxes_to_mask(view.boxes[i], static_cast<int>(image.rows), static_cast<int>(image.cols), image.area);
    std::vector<float> logits;
    int64_t end = begin;
    for (; end < living.size(0) && living[end].item<int64_t>() < image.first + image.count(); ++end)
      logits.push_back(mask[living[end].item<int64_t>() - image.first] ? infinity : -infinity);
    const at::Tensor given = at::tensor(logits);
    for (const int64_t index : options_.rule.apply(given)) out.keep.push_back(begin + index);
    out.scores.narrow(0, begin, end - begin).copy_(given.sigmoid());
    begin = end;
  }
  out.keep = merge_indices(out.keep, options_.rule.corners(view));
  return out;
}

}  // namespace glimpse
