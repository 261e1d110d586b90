// The parts of LLaVA-NeXT that the golden data has numbers for of their own.
#include "glimpse/models/llava.h"
#include "golden/counts.h"

using namespace glimpse;
using test::difference;
using test::GoldenCase;

namespace {

std::filesystem::path folder() {
  return test::golden_dir() / "llava_next_tiny";
}

Size size_of(const nlohmann::json& pair) {
  return {pair[0], pair[1]};
}

// Tokens first to before last, as the table has them.
std::pair<int, int> range_of(const nlohmann::json& pair) {
  return {pair[0], pair[1]};
}

}  // namespace

TEST_CASE("resolutions, tiles and what padding leaves, in both readings of the settings") {
  if (!std::filesystem::exists(folder())) return test::check_count("sizes of pictures", 0, 65);
  const auto table = read_json(folder() / "tables/anyres.json");
  AnyresOptions reading, original;
  for (const auto& pair : table["image_grid_pinpoints_hw"]) {
    reading.resolutions.push_back(size_of(pair));
    original.resolutions.push_back({pair[1], pair[0]});
  }
  original.rounds = false;
  int64_t run = 0, other = 0;
  for (const nlohmann::json& row : table["rows"]) {
    INFO(row.dump());
    const Size size = size_of(row["size_hw"]);
    const AnyresLayout layout = anyres_layout(size.width, size.height, reading, 14);
    CHECK(layout.tiles == size_of(row["tile_grid"]));
    CHECK(layout.resized == size_of(row["resized_hw"]));
    CHECK(layout.offset == size_of(row["pad_top_left"]));
    const auto check_places = [&](const AnyresLayout& got, const nlohmann::json& expected) {
      const auto at = [&](const char* key) { return expected.contains(key) ? expected[key] : row[key]; };
      CHECK(got.tiles == size_of(at("tile_grid")));
      CHECK(std::pair(got.first.height, got.last.height) == range_of(at("mosaic_rows")));
      CHECK(std::pair(got.first.width, got.last.width) == range_of(at("mosaic_cols")));
      CHECK(576 + got.rows() * got.cols() + got.rows() == at("tokens"));
    };
    check_places(layout, row);
    check_places(anyres_layout(size.width, size.height, original, 14),
                 row.value("original_code", nlohmann::json::object()));
    other += row.contains("original_code");
    ++run;
  }
  test::check_count("sizes of pictures", run, 65);
  CHECK(other > 0);
}

TEST_CASE("tensors are called the same in every published layout") {
  if (!std::filesystem::exists(folder())) return test::check_count("names of tensors", 0, 40);
  int64_t run = 0;
  const nlohmann::json table = read_json(folder() / "tables/keys.json");
  for (const nlohmann::json& row : table["rows"]) {
    const std::vector<std::string> names = row;
    for (const std::string& name : names)
      CHECK(Llava::canonical_name(name) == Llava::canonical_name(names[0]));
    ++run;
  }
  test::check_count("names of tensors", run, 40);
  // transformers 5 leaves out the common module of a tower.
  for (const std::string tower : {"vision_tower.", "model.vision_tower."})
    CHECK(Llava::canonical_name(tower + "encoder.layers.3.mlp.fc1.bias") ==
          "visual.vision_model.encoder.layers.3.mlp.fc1.bias");
}

TEST_CASE("pictures in tiles, value by value, and the learned rows between the tokens") {
  int64_t run = 0;
  for (const GoldenCase& golden : test::cases_below(test::golden_dir(), "plain")) {
    if (!golden.has("newline_rows")) continue;
    INFO(golden.name);
    const std::string name = golden.info["inputs"];
    const test::Inputs inputs(golden, name);
    const auto model = test::load_model(golden, at::kFloat);
    for (size_t i = 0; i < inputs.patches.size(); ++i) {
      const Patches& picture = inputs.patches[i];
      const auto array = [&](const char* what) {
        const auto found = inputs.arrays.find(what + ("." + std::to_string(i)));
        return found == inputs.arrays.end() ? at::Tensor() : found->second;
      };
      const auto [t, h, w] = picture.grid;
      const int patch = 14;
      const at::Tensor tiles = picture.pixel_values.reshape({t, h, w, 3, patch, patch})
                                   .permute({0, 3, 1, 4, 2, 5})
                                   .reshape({t, 3, h * patch, w * patch});
      if (array("pixel_values").defined()) {
        CHECK(difference(tiles, array("pixel_values")) < 1e-5);
      } else {
        const std::vector<int64_t> rows = read_json(golden.folder / (name + ".json"))["pixel_rows"];
        CHECK(difference(tiles.index_select(2, at::tensor(rows, at::kLong)), array("pixel_rows")) < 1e-5);
        CHECK(difference(tiles.sum({2, 3}, false, at::kDouble), array("pixel_sum")) < 0.05);
      }
    }
    const Prompt prompt = model->prompt(golden.integers("prompt_ids"), inputs.patches);
    CHECK(prompt.structure_rows == golden.integers("newline_rows"));
    CHECK(std::ssize(prompt.ids) == golden["input_ids"].numel());
    const at::Tensor newlines = inputs.arrays.at("image_features")
                                    .index_select(0, inputs.arrays.at("is_newline").nonzero().squeeze(1));
    CHECK(difference(model->encode(inputs.patches, {}).structure, newlines) == 0);
    // What follows the pictures is the question, wherever newlines end them.
    const std::vector<int64_t> media = prompt.media_rows();
    CHECK(std::ssize(prompt.question_rows) == std::ssize(prompt.ids) - 1 - media.back());
    ++run;
  }
  test::check_count("prompts with pictures in tiles", run, 7);
}

TEST_CASE("tokens that are dropped between the encoder's blocks, tile by tile") {
  if (!std::filesystem::exists(folder())) return;
  const GoldenCase golden(folder() / "plain/p03_square.json");
  const auto model = test::load_model(golden, at::kFloat);
  const std::vector<Patches> patches = test::Inputs(golden, golden.info["inputs"]).patches;
  const VisionOutput whole = model->encode(patches, VisionTaps({3}));
  // Of the tiles, 2 x 2 of 8 x 8 tokens, the upper left one stays, and of the whole picture everything.
  std::vector<int64_t> tokens, others;
  for (int64_t token = 0; token < 64; ++token) tokens.push_back(token);
  for (int64_t row = 0; row < 16; ++row)
    for (int64_t col = 0; col < 16; ++col)
      (row < 8 && col < 8 ? tokens : others).push_back(64 + row * 16 + col);
  const auto encoding = model->encoding(patches, VisionTaps({3}));
  while (encoding->blocks_run() != 2) encoding->step();
  const auto before = encoding->copy();
  encoding->keep(tokens);
  while (encoding->steps() > 0) encoding->step();
  const VisionOutput kept = encoding->finish();
  const auto rows = [](const at::Tensor& x, const std::vector<int64_t>& which) {
    return x.cpu().index_select(0, at::tensor(which, at::kLong));
  };
  CHECK(difference(rows(kept.embeds, tokens), rows(whole.embeds, tokens)) < 1e-4);
  CHECK(difference(rows(kept.states[0], tokens), rows(whole.states[0], tokens)) < 1e-4);
  CHECK(rows(kept.embeds, others).abs().max().item<double>() == 0);
  // A copy goes on by itself.
  while (before->steps() > 0) before->step();
  CHECK(difference(before->finish().embeds, whole.embeds) < 1e-5);
}
