#include "glimpse/image/overlay.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "glimpse/base/check.h"
#include "glimpse/image/decode.h"
#include "image/golden_arrays.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using Rgb = std::array<int, 3>;

namespace {

const std::filesystem::path output = std::filesystem::path(GLIMPSE_BINARY_DIR) / "test_output" / "image";

Image grey_picture(int width, int height) {
  return {width, height, std::vector<uint8_t>(size_t(width) * height * 3, 100)};
}

Rgb pixel(const Image& image, int x, int y) {
  const uint8_t* p = &image.rgb[(size_t(y) * image.width + x) * 3];
  return {p[0], p[1], p[2]};
}

}  // namespace

TEST_CASE("kept cells are green with a line around them, dropped cells dark") {
  // 3 x 2 tokens of 20 x 20 pixels; the middle one of the upper row and its right neighbour are kept.
  const Image drawn = draw_kept(grey_picture(60, 40), 2, 3, {2, 1});
  const Rgb dark{30, 30, 30}, tint{80, 131, 80}, line{0, 255, 0};
  CHECK(pixel(drawn, 10, 10) == dark);
  CHECK(pixel(drawn, 50, 30) == dark);
  CHECK(pixel(drawn, 30, 10) == tint);
  CHECK(pixel(drawn, 20, 10) == line);
  CHECK(pixel(drawn, 19, 10) == dark);
  CHECK(pixel(drawn, 30, 19) == line);
  CHECK(pixel(drawn, 39, 10) == tint);  // no line between two kept cells
  CHECK(pixel(drawn, 59, 0) == tint);   // nor along the picture's edge
}

TEST_CASE("what any of a picture's grids keeps is shown") {
  // Left and right half; and a grid of rows, which covers the middle half of the height.
  const std::vector<KeptGrid> grids = {{1, 2, {0}, whole_image}, {2, 1, {1}, {0, 0.25, 1, 0.75}}};
  const Image drawn = draw_kept(grey_picture(40, 40), grids);
  const Rgb dark{30, 30, 30}, tint{80, 131, 80}, line{0, 255, 0};
  CHECK(pixel(drawn, 10, 25) == tint);  // in both
  CHECK(pixel(drawn, 10, 5) == tint);
  CHECK(pixel(drawn, 30, 25) == tint);
  CHECK(pixel(drawn, 30, 15) == dark);
  CHECK(pixel(drawn, 30, 35) == dark);  // beyond the second grid
  CHECK(pixel(drawn, 19, 25) == tint);  // no line where one ends within the other
  CHECK(pixel(drawn, 19, 5) == line);
  CHECK(draw_kept(grey_picture(8, 8), std::vector<KeptGrid>()).rgb ==
        draw_kept(grey_picture(8, 8), 2, 2, {}).rgb);
  const std::vector<KeptGrid> wrong = {{1, 2, {0}, whole_image}, {1, 2, {2}, whole_image}};
  CHECK_THROWS_AS(draw_kept(grey_picture(8, 8), wrong), Error);
  std::filesystem::create_directories(output);
  save_mask_png(grids, 40, 40, output / "grids.png");
  const Image mask = load_image(output / "grids.png");
  for (int y = 0; y < 40; ++y)
    for (int x = 0; x < 40; ++x) {
      const Rgb at = pixel(drawn, x, y);
      CHECK(pixel(mask, x, y) == (at == dark ? Rgb{0, 0, 0} : Rgb{255, 255, 255}));
    }
}

TEST_CASE("a grid that covers more or less than the picture") {
  const auto marked = [](const Image& drawn, int x) { return drawn.rgb[3 * x] != drawn.rgb[3 * x + 1]; };
  // Padded: the picture is the middle half of two columns. Cropped: two columns on its middle half.
  const Image padded = draw_kept(grey_picture(40, 4), 1, 2, {0}, {-0.5, 0, 1.5, 1});
  CHECK(marked(padded, 0));
  CHECK(marked(padded, 19));
  CHECK_FALSE(marked(padded, 20));
  const Image cropped = draw_kept(grey_picture(40, 4), 1, 2, {0}, {0.25, 0, 0.75, 1});
  CHECK_FALSE(marked(cropped, 9));
  CHECK(marked(cropped, 10));
  CHECK(marked(cropped, 19));
  CHECK_FALSE(marked(cropped, 20));
  CHECK_FALSE(marked(cropped, 39));
}

TEST_CASE("grids that do not divide the picture still cover it") {
  const Image drawn = draw_kept(grey_picture(7, 5), 3, 4, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});
  CHECK(std::count(drawn.rgb.begin(), drawn.rgb.end(), 131) == 35);
  CHECK(draw_kept(grey_picture(2, 2), 9, 9, {80}).rgb.size() == 12);
}

TEST_CASE("tokens outside the grid are refused") {
  CHECK_THROWS_WITH_AS(draw_kept(grey_picture(4, 4), 2, 2, {4}),
                       doctest::Contains("outside the grid of 2 x 2"), Error);
  CHECK_THROWS_AS(draw_kept(grey_picture(4, 4), 2, 2, {-1}), Error);
  CHECK_THROWS_AS(draw_kept(grey_picture(4, 4), 0, 2, {}), Error);
}

TEST_CASE("saved pictures and masks read back the same, and leave nothing else behind") {
  std::filesystem::remove_all(output);
  std::filesystem::create_directories(output);
  const Image image = load_image(test::data_root / "images/png_rgb.png");
  save_png(image, output / "picture.png");
  save_png(image, output / "picture.png");
  CHECK(load_image(output / "picture.png").rgb == image.rgb);

  save_mask_png({0, 1, 1, 0, 0, 7}, 2, 3, 6, 4, output / "mask.png");
  const Image mask = load_image(output / "mask.png");
  const Rgb black{0, 0, 0}, white{255, 255, 255};
  CHECK(mask.width == 6);
  CHECK(mask.height == 4);
  CHECK(pixel(mask, 0, 0) == black);
  CHECK(pixel(mask, 2, 1) == white);
  CHECK(pixel(mask, 5, 1) == white);
  CHECK(pixel(mask, 3, 2) == black);
  CHECK(pixel(mask, 4, 3) == white);

  const auto files = std::distance(std::filesystem::directory_iterator(output), {});
  CHECK(files == 2);
}

TEST_CASE("what cannot be saved says why") {
  CHECK_THROWS_WITH_AS(save_png(grey_picture(2, 2), output / "no/such/folder.png"),
                       doctest::Contains("folder.png: No such file or directory"), Error);
  CHECK_THROWS_AS(save_png({}, output / "empty.png"), Error);
  CHECK_THROWS_AS(save_mask_png({1, 0}, 2, 3, 6, 4, output / "mask.png"), Error);
  std::filesystem::create_directories(output / "occupied.png");
  CHECK_THROWS_WITH_AS(save_png(grey_picture(2, 2), output / "occupied.png"),
                       doctest::Contains("occupied.png: it exists and is not a regular file"), Error);
  CHECK(!std::filesystem::exists(output / "empty.png"));
}
