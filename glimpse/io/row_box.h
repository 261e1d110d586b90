#pragma once

#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

namespace glimpse {

/// A box of a row in pixels, and from which to which second of a video it is there.
struct RowBox {
  double x1 = 0, y1 = 0, x2 = 0, y2 = 0;
  double from = -std::numeric_limits<double>::infinity(), to = std::numeric_limits<double>::infinity();

  bool operator==(const RowBox&) const = default;
};

/// As rows have it: [x1, y1, x2, y2], in a video also [x1, y1, x2, y2, from, to].
void to_json(nlohmann::json& json, const RowBox& box);
/// Whether it is a list of four or six numbers.
bool is_box(const nlohmann::json& value);
/// Error for what is no such list, or ends before it begins.
RowBox parse_box(const nlohmann::json& value);
/// Error for boxes with seconds that are not `of_video`.
void check_box_times(const std::vector<RowBox>& boxes, bool of_video);

}  // namespace glimpse
