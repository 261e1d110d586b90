#include "glimpse/image/boxes.h"

#include <limits>
#include <nlohmann/json.hpp>

#include "glimpse/base/check.h"
#include "glimpse/image/box_times.h"
#include "image/golden_arrays.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using nlohmann::json;

namespace {

Box box_from(const json& numbers) {
  return {numbers.at(0), numbers.at(1), numbers.at(2), numbers.at(3)};
}

json marked(const std::vector<Box>& boxes, int h, int w) {
  const auto mask = boxes_to_mask(boxes, h, w);
  json indices = json::array();
  for (size_t i = 0; i < mask.size(); ++i)
    if (mask[i]) indices.push_back(i);
  return indices;
}

const json golden = test::read_json(test::golden_root / "misc/boxes_to_masks.json");

}  // namespace

TEST_CASE("normalised boxes mark the golden tokens") {
  REQUIRE(golden.at("masks").size() > 0);
  for (const json& row : golden["masks"]) {
    CAPTURE(row.dump());
    std::vector<Box> boxes;
    for (const json& box : row.at("boxes")) boxes.push_back(box_from(box));
    CHECK(marked(boxes, row.at("grid_hw")[0], row["grid_hw"][1]) == row.at("kept"));
  }
}

TEST_CASE("pixel boxes mark the golden tokens") {
  REQUIRE(golden.at("pixel_boxes").size() > 0);
  for (const json& row : golden["pixel_boxes"]) {
    CAPTURE(row.dump());
    const Box box = normalise_box(box_from(row.at("box_xyxy_pixels")), row.at("width"), row.at("height"));
    CHECK(json{box.x1, box.y1, box.x2, box.y2} == row.at("normed"));
    CHECK(marked({box}, row.at("grid_hw")[0], row["grid_hw"][1]) == row.at("kept"));
  }
}

TEST_CASE("boxes are clipped to the image, never wrapped") {
  CHECK(marked({{-3, -3, 0.2, 0.2}}, 4, 4) == json{0});
  CHECK(marked({{-1e300, 0.9, 1e300, 7}}, 3, 4) == json{8, 9, 10, 11});
  CHECK(marked({{-0.9, -0.9, -0.1, -0.1}}, 4, 4).empty());
  CHECK(marked({{-0.9, 0.1, -0.01, 0.9}}, 4, 4).empty());
  CHECK(marked({{1.2, 0.1, 1.5, 0.9}}, 4, 4).empty());
}

TEST_CASE("impossible boxes and grids are refused") {
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  CHECK_THROWS_AS(marked({{0, nan, 1, 1}}, 4, 4), Error);
  CHECK_THROWS_AS(marked({{0, 0, inf, 1}}, 4, 4), Error);
  CHECK_THROWS_AS(marked({{0, 0, 1, 1}}, 0, 4), Error);
  CHECK_THROWS_AS(normalise_box({0, 0, 1, 1}, 0, 4), Error);
}

TEST_CASE("a box between two times is there at the nearer one") {
  const std::vector<double> times{0.25, 1.25, 2.25};
  const auto there = [&](double from, double to) {
    std::vector<size_t> out;
    const std::vector<Box> boxes = boxes_in({{0, 0, 1, 1, from, to}}, times);
    for (size_t i = 0; i < times.size(); ++i)
      if (!boxes_at(boxes, times[i]).empty()) out.push_back(i);
    return out;
  };
  using Places = std::vector<size_t>;
  CHECK(there(1.25, 1.25) == Places{1});
  CHECK(there(1.5, 1.5) == Places{1});
  CHECK(there(1.8, 2.2) == Places{2});
  CHECK(there(0, 0) == Places{0});
  CHECK(there(2.7, 2.7) == Places{2});
  CHECK(there(1, 2.25) == Places{1, 2});  // both ends included
  CHECK(there(2.8, 2.8).empty());
  const double always = std::numeric_limits<double>::infinity();
  CHECK(there(-always, always) == Places{0, 1, 2});
  CHECK(there(2.8, always).empty());
  CHECK((boxes_in({{0, 0, 1, 1, 2, 2}}, {}) == std::vector<Box>{{0, 0, 1, 1, 2, 2}}));
}
