#include "glimpse/image/boxes.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "glimpse/base/check.h"

namespace glimpse {
namespace {

struct Range {
  int first;
  int last;  // inclusive; below first = empty
};

Range tokens_between(double from, double to, int count) {
  if (to < 0) return {0, -1};
  const double first = std::clamp(std::trunc(from * count), 0.0, static_cast<double>(count));
  const double last = std::clamp(std::trunc(to * count), 0.0, static_cast<double>(count - 1));
  return {static_cast<int>(first), static_cast<int>(last)};
}

}  // namespace

Box normalise_box(const Box& pixels, int width, int height) {
  check(width > 0 && height > 0, "boxes need the image's size, got ", width, " x ", height);
  return {pixels.x1 / width,  pixels.y1 / height, pixels.x2 / width,
          pixels.y2 / height, pixels.from,        pixels.to};
}

std::vector<Box> boxes_at(std::span<const Box> boxes, double seconds) {
  std::vector<Box> out;
  std::ranges::copy_if(boxes, std::back_inserter(out),
                       [&](const Box& box) { return box.from <= seconds && seconds <= box.to; });
  return out;
}

std::vector<uint8_t> boxes_to_mask(std::span<const Box> normalised, int h, int w, const Box& area) {
  check(h > 0 && w > 0, "a token grid needs rows and columns, got ", h, " x ", w);
  std::vector<uint8_t> mask(static_cast<size_t>(h) * w, 0);
  for (const Box& box : normalised) {
    const bool finite =
        std::isfinite(box.x1) && std::isfinite(box.y1) && std::isfinite(box.x2) && std::isfinite(box.y2);
    check(finite, "a box must hold finite numbers, got [", box.x1, ", ", box.y1, ", ", box.x2, ", ", box.y2,
          "]");
    const double width = area.x2 - area.x1, height = area.y2 - area.y1;
    const Range columns = tokens_between((box.x1 - area.x1) / width, (box.x2 - area.x1) / width, w);
    const Range rows = tokens_between((box.y1 - area.y1) / height, (box.y2 - area.y1) / height, h);
    for (int row = rows.first; row <= rows.last; ++row)
      for (int column = columns.first; column <= columns.last; ++column)
        mask[static_cast<size_t>(row) * w + column] = 1;
  }
  return mask;
}

}  // namespace glimpse
