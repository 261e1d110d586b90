#include "glimpse/image/qwen_image.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "glimpse/base/check.h"
#include "glimpse/image/resize.h"
#include "image/golden_arrays.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using glimpse::test::golden_root;
using glimpse::test::GoldenArrays;
using nlohmann::json;

namespace {

const std::filesystem::path preprocess = golden_root / "preprocess";

DecodeOptions as_pipeline(const std::string& pipeline) {
  DecodeOptions options;
  options.apply_orientation = false;
  options.alpha_over_white = pipeline == "reference";
  return options;
}

/// JPEG inputs start from Pillow's pixels, so that decoders may differ.
std::filesystem::path pixels_file(const std::string& file) {
  std::filesystem::path path = preprocess / file;
  if (path.extension() == ".jpg") path.replace_extension(".decoded.png");
  return path;
}

double max_difference(const float* got, const std::vector<float>& expected) {
  double worst = 0;
  for (size_t i = 0; i < expected.size(); ++i)
    worst = std::max(worst, std::abs(double{got[i]} - expected[i]));
  return worst;
}

json options_json() {
  return {{"patch_size", 14}, {"temporal_patch_size", 2}, {"merge_size", 2}};
}

}  // namespace

TEST_CASE("preprocessing equals the reference on every golden picture") {
  int seen = 0;
  const json runs = test::read_json(preprocess / "index.json");
  CHECK((test::own_golden_data ? runs.size() == 30 : !runs.empty()));
  for (const json& run : runs) {
    const std::string file = run.at("file"), pipeline = run.at("pipeline");
    QwenImageOptions options;
    options.min_pixels = run.at("min_pixels");
    options.max_pixels = run.at("max_pixels");
    options.reference = pipeline == "reference";
    const Image image = load_image(pixels_file(file), as_pipeline(pipeline));
    ++seen;
    if (!run.contains("name") || run["name"].is_null()) {
      // The image processor alone refuses this one.
      CHECK_THROWS_AS(
          smart_resize_strict(image.height, image.width, 28, options.min_pixels, options.max_pixels), Error);
      continue;
    }
    const std::string name = run["name"];
    CAPTURE(name);
    const GoldenArrays golden(preprocess / (run.value("same_as", name) + ".safetensors"));

    const Image resized = qwen_resize(image, options);
    const auto shape = golden.shape("resized_u8");
    CHECK(resized.height == shape[0]);
    CHECK(resized.width == shape[1]);
    const bool same_pixels = resized.rgb == golden.values<uint8_t>("resized_u8");
    CHECK(same_pixels);

    const Patches patches = qwen_patches(image, options);
    const Grid grid = patches.grid;
    CHECK(json{grid.t, grid.h, grid.w} == run.at("grid_thw"));
    REQUIRE(patches.pixel_values.sizes() == at::IntArrayRef({grid.h * grid.w, 1176}));
    const auto rows = golden.values<int32_t>("rows");
    const at::Tensor picked = patches.pixel_values.index_select(0, at::tensor(rows).to(at::kLong));
    CHECK(max_difference(picked.data_ptr<float>(), golden.values<float>("pixel_values_rows")) <= 1e-6);
    const at::Tensor sums = patches.pixel_values.to(at::kDouble).sum(1).to(at::kFloat);
    CHECK(max_difference(sums.data_ptr<float>(), golden.values<float>("pixel_values_rowsum")) <= 2e-3);
  }
  CHECK(seen == 30);
}

TEST_CASE("pictures of the tiny models give their pixel_values") {
  int pictures = 0;
  for (const char* model : {"qwen_tiny", "qwen_tiny_tied", "qwen3_vl_tiny"})
    for (const char* input : {"imgA", "imgB", "imgC", "imgE"}) {
      QwenImageOptions options;
      if (model == std::string("qwen3_vl_tiny")) options = QwenImageOptions::qwen3();
      options.min_pixels = 1024;
      const auto folder = golden_root / model / "inputs";
      if (!std::filesystem::exists(folder / (std::string(input) + ".safetensors"))) continue;
      const GoldenArrays golden(folder / (std::string(input) + ".safetensors"));
      const auto expected = golden.values<float>("pixel_values");
      const auto grids = golden.values<int32_t>("image_grid_thw");
      size_t at = 0;
      for (size_t i = 0; i < grids.size() / 3; ++i) {
        CAPTURE(concat(model, " ", input, " ", i));
        const auto path = folder / concat(input, ".", i, ".png");
        const Patches patches = qwen_patches(load_image(path), options);
        CHECK(patches.grid == Grid{grids[3 * i], grids[3 * i + 1], grids[3 * i + 2]});
        const size_t count = patches.pixel_values.numel();
        REQUIRE(at + count <= expected.size());
        CHECK(max_difference(patches.pixel_values.data_ptr<float>(),
                             {expected.begin() + at, expected.begin() + at + count}) <= 1e-6);
        at += count;
        ++pictures;
      }
      CHECK(at == expected.size());
    }
  CHECK(pictures == 11);
}

TEST_CASE("Qwen3-VL's preprocessing: patches of 16 pixels, other bounds and values") {
  const std::filesystem::path folder = golden_root / "qwen3_vl_tiny/preprocess";
  const QwenImageOptions options = QwenImageOptions::qwen3();
  for (const char* name : {"image0", "image1"}) {
    CAPTURE(name);
    const Image image = load_image(folder / concat(name, ".png"));
    const GoldenArrays golden(folder / concat(name, ".safetensors"));
    const bool same_pixels = qwen_resize(image, options).rgb == golden.values<uint8_t>("resized_u8");
    CHECK(same_pixels);
    const Patches patches = qwen_patches(image, options);
    CHECK(json{patches.grid.t, patches.grid.h, patches.grid.w} ==
          test::read_json(folder / concat(name, ".json")).at("grid_thw"));
    const at::Tensor picked =
        patches.pixel_values.index_select(0, at::tensor(golden.values<int32_t>("rows")).to(at::kLong));
    // Of Pillow; the published processor resizes with torchvision, at times one or two levels off.
    const auto expected = golden.values<float>("pixel_values_rows");
    REQUIRE(picked.numel() == std::ssize(expected));
    CHECK(max_difference(picked.data_ptr<float>(), expected) <= 1e-5);
    const at::Tensor sums = patches.pixel_values.to(at::kDouble).sum(1).to(at::kFloat);
    CHECK(max_difference(sums.data_ptr<float>(), golden.values<float>("pixel_values_rowsum")) <= 2e-3);
  }
}

TEST_CASE("Qwen3-VL's sizes of pictures") {
  const json table = test::read_json(golden_root / "qwen3_vl_tiny/tables/smart_resize.json");
  const QwenImageOptions options = QwenImageOptions::qwen3();
  const auto compare = [&](const json& row, const char* column, int64_t min_pixels, bool thin_grows) {
    CAPTURE(row.dump());
    const int height = row["size_hw"][0], width = row["size_hw"][1];
    const auto size = [&] {
      return smart_resize(height, width, 32, min_pixels, options.max_pixels, thin_grows);
    };
    if (row[column].is_null())
      CHECK_THROWS_AS(size(), Error);
    else
      CHECK(json{size().height, size().width} == row[column]);
  };
  for (const json& row : table["rows"]) {
    compare(row, "transformers", options.min_pixels, options.thin_grows);
    compare(row, "qwen_vl_utils", 4096, false);
  }
  CHECK(table["rows"].size() == 41);
}

TEST_CASE("a still picture fills every frame of its temporal patch") {
  QwenImageOptions options;
  options.temporal_patch_size = 3;
  const Image image = load_image(preprocess / "images/tiny_33x20.png");
  const Patches patches = qwen_patches(image, options);
  const at::Tensor frames = patches.pixel_values.view({-1, 3, 3, 14 * 14});
  CHECK(frames.select(2, 0).equal(frames.select(2, 1)));
  CHECK(frames.select(2, 0).equal(frames.select(2, 2)));
}

TEST_CASE("a long picture keeps one row of tokens unless the reference is wanted") {
  const Image image{1344, 14, std::vector<uint8_t>(1344 * 14 * 3, 90)};
  QwenImageOptions options;
  options.max_pixels = 18816;
  CHECK(qwen_patches(image, options).grid.h == 2);
  options.reference = true;
  CHECK_THROWS_WITH_AS(qwen_patches(image, options), doctest::Contains("too long for max_pixels 18816"),
                       Error);
}

TEST_CASE("options come from every known form of preprocessor_config.json") {
  json top = options_json();
  top["min_pixels"] = 200;
  top["max_pixels"] = 3000;
  json edges = options_json();
  edges["size"] = {{"shortest_edge", 200}, {"longest_edge", 3000}};
  edges["min_pixels"] = nullptr;
  json inner = options_json();
  inner["size"] = {{"min_pixels", 200}, {"max_pixels", 3000}};
  for (const json& config : {top, edges, inner}) {
    const auto options = QwenImageOptions::from_json(config);
    CHECK(options.min_pixels == 200);
    CHECK(options.max_pixels == 3000);
  }
  const auto tiny = QwenImageOptions::from_json(test::read_json(
      std::filesystem::path(GLIMPSE_SOURCE_DIR) / "models/tiny/model/preprocessor_config.json"));
  CHECK(tiny.max_pixels == 200704);
  CHECK(tiny.mean[2] == doctest::Approx(0.40821073));
  // What a config leaves out is the family's.
  const auto larger =
      QwenImageOptions::from_json({{"size", {{"shortest_edge", 4096}}}}, QwenImageOptions::qwen3());
  CHECK(larger.min_pixels == 4096);
  CHECK(larger.max_pixels == 16777216);
  CHECK(larger.patch_size == 16);
  CHECK(larger.std[1] == 0.5f);
}

TEST_CASE("wrong options are refused with the field's name") {
  const std::pair<const char*, json> wrong[] = {
      {"patch_size", 0},         {"patch_size", "14"},  {"merge_size", 1e9},         {"max_pixels", -5},
      {"max_pixels", 1e300},     {"image_mean", {0.5}}, {"image_std", {0.5, 0, 1}},  {"do_resize", false},
      {"rescale_factor", 0.5},   {"resample", 2},       {"patch_size", 99999999999}, {"min_pixels", 20000000},
      {"temporal_patch_size", 0}};
  for (const auto& [key, value] : wrong) {
    json config = options_json();
    config[key] = value;
    CAPTURE(config.dump());
    CHECK_THROWS_WITH_AS(QwenImageOptions::from_json(config), doctest::Contains(key), Error);
  }
  CHECK_THROWS_AS(QwenImageOptions::from_json(json::array()), Error);
}
