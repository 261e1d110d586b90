// Tiles of pictures beyond what the golden data's tables say (tests/golden/next_test.cpp).
#include "glimpse/image/anyres.h"

#include "glimpse/base/check.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;

namespace {

// Tiles of 28 pixels, 2 x 2 tokens.
AnyresOptions options() {
  return {{.shortest_edge = 28, .crop_size = 28}, {{28, 56}, {56, 28}, {56, 56}}};
}

Image picture(int width, int height) {
  Image out{width, height, std::vector<uint8_t>(size_t{3} * width * height)};
  for (int i = 0; i < width * height; ++i) {
    out.rgb[3 * i] = static_cast<uint8_t>(40 + i % width);
    out.rgb[3 * i + 1] = static_cast<uint8_t>(40 + i / width);
    out.rgb[3 * i + 2] = 200;
  }
  return out;
}

}  // namespace

TEST_CASE("a picture that fits exactly is in its tiles as it is") {
  const Image wide = picture(56, 28);
  const Patches patches = anyres_patches(wide, options(), 14);
  CHECK(patches.grid == Grid{3, 2, 2});
  CHECK(patches.pixel_values.sizes() == at::IntArrayRef({12, 3 * 14 * 14}));
  CHECK((patches.width == 56 && patches.height == 28));
  // The first patch of the second tile begins 28 pixels to the right.
  const AnyresOptions how = options();
  const float red = (68 / 255.0F - how.tile.mean[0]) / how.tile.std[0];
  CHECK(patches.pixel_values[8][0].item<float>() == doctest::Approx(red));
  const AnyresLayout layout = anyres_layout(56, 28, how, 14);
  CHECK((layout.rows() == 2 && layout.cols() == 4));
  CHECK((layout.area.x1 == 0 && layout.area.y1 == 0 && layout.area.x2 == 1 && layout.area.y2 == 1));
}

TEST_CASE("what the tiles' tokens cover of the picture") {
  // 56 x 40 of 56 x 56 pixels: 8 rows of black above and below, so that of 4 rows of tokens 2 stay, which
  // show all but 6 rows of the picture at either end.
  const AnyresLayout layout = anyres_layout(56, 40, options(), 14);
  CHECK(layout.tiles == Size{2, 2});
  CHECK(layout.offset == Size{8, 0});
  CHECK(layout.first == Size{1, 0});
  CHECK(layout.last == Size{3, 4});
  CHECK(layout.area.y1 == doctest::Approx(6 / 40.0));
  CHECK(layout.area.y2 == doctest::Approx(34 / 40.0));
  // A box in the picture's upper left quarter.
  const Box box{0.01, 0.01, 0.49, 0.49};
  CHECK(boxes_to_mask(std::span(&box, 1), 2, 4, layout.area) == std::vector<uint8_t>{1, 1, 0, 0, 0, 0, 0, 0});
  CHECK(boxes_to_mask(std::span(&box, 1), 2, 2) == std::vector<uint8_t>{1, 0, 0, 0});
}

TEST_CASE("long pictures, and resolutions that are no tiles") {
  AnyresOptions how = options();
  CHECK(anyres_layout(4000, 1, how, 14).rows() == 0);
  CHECK(anyres_layout(1, 4000, how, 14).cols() == 0);
  CHECK(anyres_patches(picture(300, 1), how, 14).grid.t == 3);
  how.resolutions = {{28, 30}};
  CHECK_THROWS_WITH_AS(anyres_layout(8, 8, how, 14),
                       "image_grid_pinpoints: 30 x 28 pixels are no tiles of 28 x 28", Error);
  how.resolutions = {{28, 28 * 1000}};
  CHECK_THROWS_AS(anyres_layout(8, 8, how, 14), Error);
  how.resolutions.clear();
  CHECK_THROWS_AS(anyres_layout(8, 8, how, 14), Error);
}
