#pragma once

#include <span>
#include <vector>

#include "glimpse/base/box.h"

namespace glimpse {

/// Boxes of a video that shows something at these times (s, ascending): each that is there only between two
/// of them, or for an instant, is there at the nearer one. What lies more than half a step outside them all
/// stays.
std::vector<Box> boxes_in(std::vector<Box> boxes, std::span<const double> times);

}  // namespace glimpse
