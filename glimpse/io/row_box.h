#pragma once

#include <nlohmann/json.hpp>
#include <vector>

#include "glimpse/base/box.h"

namespace glimpse {

/// As rows have it, in pixels: [x1, y1, x2, y2], in a video also [x1, y1, x2, y2, from, to].
void to_json(nlohmann::json& json, const Box& box);
/// Whether it is a list of four or six numbers.
bool is_box(const nlohmann::json& value);
/// Error for what is no such list, or ends before it begins.
Box parse_box(const nlohmann::json& value);
/// Error for boxes with seconds that are not `of_video`.
void check_box_times(const std::vector<Box>& boxes, bool of_video);

}  // namespace glimpse
