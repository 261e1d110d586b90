#include "glimpse/image/clip_image.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "glimpse/base/check.h"
#include "glimpse/image/decode.h"
#include "image/golden_arrays.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using glimpse::test::golden_root;
using glimpse::test::GoldenArrays;
using nlohmann::json;

namespace {

// The published loader ignores orientation and drops alpha; JPEGs start from Pillow's pixels.
Image golden_image(std::filesystem::path file) {
  if (file.extension() == ".jpg") file.replace_extension(".decoded.png");
  return load_image(file, {.apply_orientation = false, .alpha_over_white = false});
}

// Patches back to [3, side, side].
at::Tensor pixels_of(const Patches& patches, int64_t patch) {
  const int64_t rows = patches.grid.h, cols = patches.grid.w;
  return patches.pixel_values.view({rows, cols, 3, patch, patch})
      .permute({2, 0, 3, 1, 4})
      .reshape({3, rows * patch, cols * patch});
}

at::Tensor tensor_of(const GoldenArrays& golden, const std::string& name) {
  return at::tensor(golden.values<float>(name)).view(golden.shape(name));
}

double worst(const at::Tensor& a, const at::Tensor& b) {
  REQUIRE(a.sizes() == b.sizes());
  return (a - b).abs().max().item<double>();
}

Image plain(int width, int height, uint8_t value) {
  return {width, height, std::vector<uint8_t>(size_t{3} * width * height, value)};
}

}  // namespace

TEST_CASE("padding and CLIP preprocessing equal the reference on every golden picture") {
  const auto folder = golden_root / "preprocess";
  const json runs = test::read_json(folder / "index_clip.json");
  CHECK((test::own_golden_data ? runs.size() == 7 : !runs.empty()));
  for (const json& run : runs) {
    const std::string name = run.at("name"), file = run.at("file");
    CAPTURE(name);
    const GoldenArrays golden(folder / (name + ".safetensors"));
    const Patches patches = clip_patches(golden_image(folder / file), {.pad = true}, 14);
    CHECK(patches.grid == Grid{1, 24, 24});
    const at::Tensor pixels = pixels_of(patches, 14);
    const std::vector<int32_t> rows = golden.values<int32_t>("rows");
    const at::Tensor picked =
        pixels.index_select(1, at::tensor(std::vector<int64_t>(rows.begin(), rows.end()), at::kLong));
    CHECK(worst(picked, tensor_of(golden, "pixel_values_rows")) <= 1e-5);
    CHECK(worst(pixels.sum(2), tensor_of(golden, "pixel_values_rowsum")) <= 2e-3);
  }
}

TEST_CASE("the inputs of the tiny LLaVA") {
  const auto folder = golden_root / "llava_tiny";
  ClipImageOptions options =
      ClipImageOptions::from_json(test::read_json(folder / "vision_tower/preprocessor_config.json"));
  CHECK(options.crop_size == 112);
  options.pad = true;
  for (const char* name : {"imgA", "imgB"}) {
    const GoldenArrays golden(folder / "inputs" / (std::string(name) + ".safetensors"));
    const Image image = golden_image(folder / "inputs" / (std::string(name) + ".png"));
    const at::Tensor expected = tensor_of(golden, "pixel_values");
    const Patches patches = clip_patches(image, options, 14);
    CHECK(worst(pixels_of(patches, 14), expected) <= 1e-5);
    CHECK(worst(cut_patches(expected, 14).pixel_values, patches.pixel_values) <= 1e-5);
  }
}

TEST_CASE("what the grid covers") {
  ClipImageOptions options;
  const auto area = [&](int width, int height) {
    return clip_patches(plain(width, height, 9), options, 14).area;
  };
  // Shortest edge 336, so the grid is the middle half of a picture twice as wide as high.
  Box box = area(400, 200);
  CHECK(box.x1 == doctest::Approx(0.25));
  CHECK(box.x2 == doctest::Approx(0.75));
  CHECK(box.y1 == doctest::Approx(0));
  CHECK(box.y2 == doctest::Approx(1));
  options.pad = true;  // half a height of padding above and below
  box = area(400, 200);
  CHECK(box.x1 == doctest::Approx(0));
  CHECK(box.x2 == doctest::Approx(1));
  CHECK(box.y1 == doctest::Approx(-0.5));
  CHECK(box.y2 == doctest::Approx(1.5));
  // A box over the whole picture marks the rows that show it, one below its middle the lower ones.
  const std::vector<Box> all = {whole_image}, lower = {{0.1, 0.6, 0.2, 0.7}};
  std::vector<uint8_t> mask = boxes_to_mask(all, 4, 4, box);
  CHECK(mask == std::vector<uint8_t>{0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1});
  mask = boxes_to_mask(lower, 4, 4, box);
  CHECK(mask == std::vector<uint8_t>{0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0});
}

TEST_CASE("padding is of the mean colour and splits like the reference's") {
  const Image square = clip_resize(plain(3, 6, 200), {.shortest_edge = 6, .crop_size = 6, .pad = true});
  const auto pixel = [&](int x, int y) { return square.rgb[(y * 6 + x) * 3]; };
  for (int y = 0; y < 6; ++y) {
    CHECK(pixel(0, y) == 122);
    for (int x = 1; x < 4; ++x) CHECK(pixel(x, y) == 200);
    CHECK(pixel(4, y) == 122);
    CHECK(pixel(5, y) == 122);
  }
}

TEST_CASE("preprocessor_config.json of the published versions, and what is refused") {
  const json newer = {{"size", {{"shortest_edge", 224}}}, {"crop_size", {{"height", 224}, {"width", 224}}}};
  CHECK(ClipImageOptions::from_json(newer).shortest_edge == 224);
  CHECK(ClipImageOptions::from_json({{"size", 336}, {"crop_size", 224}}).crop_size == 224);
  CHECK(ClipImageOptions::from_json({{"do_pad", true}}).pad);
  for (const json& wrong :
       {json{{"crop_size", {{"height", 336}, {"width", 224}}}}, json{{"size", 100}}, json{{"size", "big"}},
        json{{"size", 1 << 20}}, json{{"do_center_crop", false}}, json{{"do_resize", false}},
        json{{"resample", 2}}, json{{"image_std", {0, 1, 1}}}, json{{"crop_size", 0}}, json::array()})
    CHECK_THROWS_AS(ClipImageOptions::from_json(wrong), Error);
  CHECK_THROWS_AS(clip_resize(plain(1, 201, 0), {}), Error);
  CHECK_THROWS_AS(clip_resize(plain(20000, 100, 0), {.pad = true}), Error);
  CHECK_THROWS_AS(clip_resize({}, {}), Error);
}
