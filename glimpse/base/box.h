#pragma once

#include <limits>

namespace glimpse {

/// Corners of a rectangle, x to the right, y downwards; in pixels or, normalised, in parts of the image's
/// sides. In a video it is there from one time to another, both included.
struct Box {
  double x1 = 0;
  double y1 = 0;
  double x2 = 0;
  double y2 = 0;
  double from = -std::numeric_limits<double>::infinity(),
         to = std::numeric_limits<double>::infinity();  ///< s

  bool operator==(const Box&) const = default;
};

}  // namespace glimpse
