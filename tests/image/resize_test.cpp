#include "glimpse/image/resize.h"

#include <nlohmann/json.hpp>

#include "glimpse/base/check.h"
#include "glimpse/image/decode.h"
#include "image/golden_arrays.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using nlohmann::json;

namespace {

/// [height, width], or null when `call` refuses.
template <class Call>
json size_or_null(const Call& call) {
  try {
    const Size size = call();
    return {size.height, size.width};
  } catch (const Error&) {
    return nullptr;
  }
}

}  // namespace

TEST_CASE("smart_resize gives all golden sizes") {
  const json rows = test::read_json(test::golden_root / "preprocess/smart_resize.json");
  REQUIRE(!rows.empty());
  for (const json& row : rows) {
    CAPTURE(row.dump());
    const int height = row.at("h"), width = row.at("w");
    const int64_t min = row.at("min"), max = row.at("max");
    CHECK(size_or_null([&] { return smart_resize_strict(height, width, 28, min, max); }) == row.at("hf"));
    CHECK(size_or_null([&] { return smart_resize(height, width, 28, min, max); }) == row.at("qwen_vl_utils"));
  }
}

TEST_CASE("resizing equals Pillow's") {
  const auto folder = test::data_root / "images";
  for (const json& row : test::read_json(folder / "resized.json")) {
    CAPTURE(row.dump());
    const Image image = load_image(folder / row.at("from"));
    const Image expected = load_image(folder / row.at("file"));
    const Filter filter = row.at("filter") == "bicubic" ? Filter::bicubic : Filter::bilinear;
    const Image got = resize(image, expected.width, expected.height, filter);
    const bool same = got.rgb == expected.rgb;
    CHECK(same);
  }
}

TEST_CASE("sizes without pixels are refused") {
  const Image image{2, 1, std::vector<uint8_t>(6)};
  CHECK_THROWS_AS(resize(image, 0, 4), Error);
  CHECK_THROWS_AS(resize(image, 4, -1), Error);
  CHECK_THROWS_AS(resize({}, 4, 4), Error);
  CHECK_THROWS_AS(smart_resize(0, 10, 28, 3136, 12845056), Error);
  CHECK_THROWS_WITH_AS(smart_resize(10, 2001, 28, 3136, 12845056), doctest::Contains("aspect ratio"), Error);
}
