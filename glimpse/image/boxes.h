#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace glimpse {

/// Corners of a rectangle, x to the right, y downwards; in pixels or, normalised, in parts of the image's
/// sides.
struct Box {
  double x1 = 0;
  double y1 = 0;
  double x2 = 0;
  double y2 = 0;
};

/// A box in pixels as parts of an image of `width` x `height` pixels (both positive, else Error).
Box normalise_box(const Box& pixels, int width, int height);

/// The tokens that any of the normalised boxes touches: [h*w] of 0/1, row-major over a grid of `h` x `w`
/// tokens. What reaches outside the image is clipped; an empty or inverted box marks nothing; a number that
/// is not finite is an Error.
std::vector<uint8_t> boxes_to_mask(std::span<const Box> normalised, int h, int w);

}  // namespace glimpse
