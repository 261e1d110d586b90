#include "glimpse/image/decode.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "glimpse/base/check.h"
#include "image/golden_arrays.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using nlohmann::json;

namespace {

const auto folder = test::data_root / "images";

/// The largest difference of two bytes, 256 when the sizes differ.
int difference(const Image& a, const Image& b) {
  if (a.width != b.width || a.height != b.height || a.rgb.size() != b.rgb.size()) return 256;
  int worst = 0;
  for (size_t i = 0; i < a.rgb.size(); ++i) worst = std::max(worst, std::abs(a.rgb[i] - b.rgb[i]));
  return worst;
}

Image load(const std::string& file, const DecodeOptions& options = {}) {
  return load_image(folder / file, options);
}

}  // namespace

TEST_CASE("every format gives the pixels that Pillow gives") {
  const json index = test::read_json(folder / "index.json");
  CHECK(index.size() > 60);
  for (const json& entry : index) {
    CAPTURE(entry.dump());
    const Image image = load(entry.at("file"));
    CHECK(image.rgb.size() == size_t(image.width) * image.height * 3);
    CHECK(difference(image, load(entry.at("expected"))) <= entry.at("max_difference").get<int>());
  }
}

TEST_CASE("golden JPEG files decode exactly as with Pillow") {
  DecodeOptions as_stored;
  as_stored.apply_orientation = false;
  const auto images = test::golden_root / "preprocess/images";
  for (const std::string name : {"china_300x200", "coffee_exif6_253x180"}) {
    CAPTURE(name);
    CHECK(difference(load_image(images / (name + ".jpg"), as_stored),
                     load_image(images / (name + ".decoded.png"))) == 0);
  }
  const Image upright = load_image(images / "coffee_exif6_253x180.jpg");
  CHECK(upright.width == 180);
  CHECK(upright.height == 253);
}

TEST_CASE("orientation and alpha follow the options") {
  DecodeOptions plain;
  plain.apply_orientation = false;
  plain.alpha_over_white = false;
  CHECK(difference(load("exif_6.png", plain), load("tiff_orientation_1.tif")) == 0);
  for (const char* turned : {"tiff_orientation_2.tif", "tiff_orientation_6.tif", "tiff_orientation_7.tif"})
    CHECK(difference(load(turned, plain), load("tiff_orientation_1.tif")) == 0);
  CHECK(difference(load("png_rgba.png", plain), load("png_rgb.png")) == 0);
  CHECK(difference(load("webp_lossless_alpha.webp", plain), load("png_rgb.png")) == 0);
  CHECK(difference(load("png_rgb_trns.png", plain), load("png_rgb.png")) == 0);
}

TEST_CASE("the pixel limit is exact and names size and limit") {
  DecodeOptions options;
  options.max_pixels = 41 * 30;
  for (const json& entry : test::read_json(folder / "index.json")) {
    const std::string file = entry.at("file");
    const int64_t pixels = [&] {
      const Image image = load(file);
      return int64_t{image.width} * image.height;
    }();
    CAPTURE(file);
    options.max_pixels = pixels;
    CHECK_NOTHROW(load(file, options));
    options.max_pixels = pixels - 1;
    CHECK_THROWS_WITH_AS(load(file, options), doctest::Contains(concat(pixels - 1, " pixels").c_str()),
                         Error);
  }
}

TEST_CASE("a dash reads standard input") {
  std::ifstream file(folder / "jpeg_420.jpg", std::ios::binary);
  std::streambuf* const input = std::cin.rdbuf(file.rdbuf());
  const Image image = load_image("-");
  std::istringstream page("<html>");
  std::cin.rdbuf(page.rdbuf());
  std::cin.clear();
  CHECK_THROWS_WITH_AS(load_image("-"), doctest::Contains("standard input: unknown image format"), Error);
  std::cin.rdbuf(input);
  std::cin.clear();
  CHECK(difference(image, load("jpeg_420.jpg")) == 0);
}

TEST_CASE("files that cannot be read say so") {
  CHECK_THROWS_WITH_AS(load("missing.png"), doctest::Contains("missing.png: no such file"), Error);
  CHECK_THROWS_WITH_AS(load(""), doctest::Contains("is a folder"), Error);
  DecodeOptions options;
  options.max_file_bytes = 100;
  CHECK_THROWS_WITH_AS(load("png_rgb.png", options), doctest::Contains("larger than 100 bytes"), Error);
}
