#include "glimpse/image/box_times.h"

#include <algorithm>
#include <cmath>

namespace glimpse {

std::vector<Box> boxes_in(std::vector<Box> boxes, std::span<const double> times) {
  if (times.empty()) return boxes;
  const auto steps = static_cast<double>(times.size() - 1);
  // Two frames are a second long at the usual rate.
  const double step = steps > 0 ? (times.back() - times.front()) / steps : 1;
  for (Box& box : boxes) {
    const auto behind = std::ranges::lower_bound(times, box.from);
    if (behind != times.end() && *behind <= box.to) continue;
    const double middle = (box.from + box.to) / 2;
    const double nearest =
        *std::ranges::min_element(times, {}, [&](double time) { return std::abs(time - middle); });
    if (std::abs(nearest - middle) <= step / 2) box.from = box.to = nearest;
  }
  return boxes;
}

}  // namespace glimpse
