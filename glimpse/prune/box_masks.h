#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "glimpse/prune/pruner.h"

namespace glimpse {

/// The tokens of each segment that a box of its medium touches (boxes_to_mask); in a video a box marks the
/// slices of the times that it is there, at least the nearest one. `boxes`: of every medium.
std::vector<std::vector<uint8_t>> box_masks(std::span<const Segment> segments,
                                            std::span<const std::vector<Box>> boxes);

}  // namespace glimpse
