#include "glimpse/io/row_box.h"

#include <algorithm>
#include <cmath>

#include "glimpse/base/check.h"

namespace glimpse {

using nlohmann::json;

namespace {

bool has_times(const Box& box) {
  return std::isfinite(box.from) || std::isfinite(box.to);
}

bool are_numbers(const json& value) {
  return value.is_array() && std::ranges::all_of(value, [](const json& each) { return each.is_number(); });
}

}  // namespace

void to_json(json& out, const Box& box) {
  out = json::array({box.x1, box.y1, box.x2, box.y2});
  if (has_times(box)) out.insert(out.end(), {box.from, box.to});
}

bool is_box(const json& value) {
  return are_numbers(value) && (value.size() == 4 || value.size() == 6);
}

Box parse_box(const json& value) {
  check(are_numbers(value),
        "a box must be a list of numbers: [x1, y1, x2, y2], in a video also [.., from, to]");
  check(is_box(value), "a box has ", value.size(), " numbers, expected 4, or 6 with the seconds of a video");
  const auto number = [&](size_t i) { return value[i].get<double>(); };
  Box box{number(0), number(1), number(2), number(3)};
  if (value.size() == 4) return box;
  box.from = number(4);
  box.to = number(5);
  check(box.from <= box.to, "box ", value.dump(),
        " is there up to a second before that from which it is there");
  return box;
}

void check_box_times(const std::vector<Box>& boxes, bool of_video) {
  for (const Box& box : boxes)
    check(of_video || !has_times(box), "box ", json(box).dump(),
          " has seconds, but the first of what the row shows is no video");
}

}  // namespace glimpse
