#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "glimpse/base/box.h"

namespace glimpse {

/// All of an image, in parts of its sides.
inline constexpr Box whole_image{0, 0, 1, 1};

/// A box in pixels as parts of an image of `width` x `height` pixels (both positive, else Error).
Box normalise_box(const Box& pixels, int width, int height);

/// Those that are there at a time of a video.
std::vector<Box> boxes_at(std::span<const Box> boxes, double seconds);

/// The tokens that any of the normalised boxes touches: [h*w] of 0/1, row-major over a grid of `h` x `w`
/// tokens that covers `area` of the image. What reaches outside it is clipped; an empty or inverted box marks
/// nothing; a number that is not finite is an Error.
std::vector<uint8_t> boxes_to_mask(std::span<const Box> normalised, int h, int w,
                                   const Box& area = whole_image);

}  // namespace glimpse
