#include "glimpse/prune/box_masks.h"

#include <iterator>

#include "glimpse/image/box_times.h"

namespace glimpse {

std::vector<std::vector<uint8_t>> box_masks(std::span<const Segment> segments,
                                            std::span<const std::vector<Box>> boxes) {
  std::vector<std::vector<uint8_t>> masks;
  std::vector<Box> own;
  for (auto at = segments.begin(); at != segments.end(); ++at) {
    if (at == segments.begin() || at->medium != std::prev(at)->medium) {
      std::vector<double> times;
      for (auto same = at; same != segments.end() && same->medium == at->medium; ++same)
        times.push_back(same->seconds);
      own = boxes_in(boxes[at->medium], times);
    }
    masks.push_back(boxes_to_mask(boxes_at(own, at->seconds), static_cast<int>(at->rows),
                                  static_cast<int>(at->cols), at->area));
  }
  return masks;
}

}  // namespace glimpse
