// Qwen3-VL: order of the rotary pairs, prompts with videos, what its config may look like.
#include <functional>

#include "glimpse/base/check.h"
#include "glimpse/models/config.h"
#include "glimpse/models/mrope.h"
#include "glimpse/models/vlm.h"
#include "golden_case.h"
#include "io/scratch.h"

using namespace glimpse;
using nlohmann::json;
using Ids = std::vector<int64_t>;

namespace {

Ids integers(const at::Tensor& t) {
  const at::Tensor own = t.contiguous();
  return {own.const_data_ptr<int64_t>(), own.const_data_ptr<int64_t>() + own.numel()};
}

std::filesystem::path base() {
  return test::golden_dir() / "qwen3_vl_tiny/base";
}

const Vlm& model() {
  static const std::unique_ptr<Vlm> loaded = load_vlm(base(), {.dtype = at::kFloat});
  return *loaded;
}

Patches pictures(int t, int h, int w) {
  return {at::zeros({t * h * w, 1536}), {t, h, w}};
}

// The model's folder after a change to its config.json.
class Changed {
 public:
  explicit Changed(const std::function<void(json&)>& edit) {
    json config = read_json(base() / "config.json");
    edit(config);
    scratch_.write("config.json", config.dump());
    std::filesystem::create_symlink(base() / "model.safetensors", scratch_ / "model.safetensors");
  }
  std::filesystem::path dir() const { return scratch_ / ""; }

 private:
  const test::Scratch scratch_;
};

// Rotary tables after a change to config.json.
at::Tensor rope_with(const std::function<void(json&)>& edit) {
  const Changed folder(edit);
  const auto changed = load_vlm(folder.dir(), {.dtype = at::kFloat});
  const at::Tensor positions = at::arange(100, 108, at::kLong).expand({3, -1}).contiguous();
  return changed->rope(positions).cos;
}

constexpr int64_t kImage = 566, kVideo = 567, kStart = 563, kEnd = 564;

}  // namespace

TEST_CASE("rotary pairs take turns with time, row and column") {
  CHECK(integers(interleaved_components({6, 3, 3})) == Ids{0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0, 0});
  CHECK(integers(interleaved_components({4, 2, 2})) == Ids{0, 1, 2, 0, 1, 2, 0, 0});
  const Ids published = integers(interleaved_components({24, 20, 20}));
  for (size_t pair = 0; pair < 64; ++pair) CHECK(published[pair] == (pair < 60 ? pair % 3 : 0));
  CHECK_THROWS_AS(interleaved_components({6, 6}), Error);

  const at::Tensor positions = at::tensor({1, 2, 10, 20, 100, 200}, at::kLong).view({3, 2});
  const at::Tensor angles = interleaved_angles(positions, interleaved_components({2, 1, 1}),
                                               at::tensor({1.0F, 0.5F, 0.25F, 0.125F}).unsqueeze(0));
  CHECK(at::equal(angles, at::tensor({1.0F, 5.0F, 25.0F, 0.125F, 2.0F, 10.0F, 50.0F, 0.25F}).view({2, 4})));
}

TEST_CASE("a video's slices are segments with places of their own") {
  // An image of 2 x 3 tokens, a video of two slices of 1 x 2; each place once, and widened.
  const Ids once = {5, kStart, kImage, kEnd, 27, kStart, kVideo, kEnd, 28, kStart, kVideo, kEnd, 6};
  Ids wide;
  for (const int64_t id : once) wide.insert(wide.end(), id == kImage ? 6 : id == kVideo ? 2 : 1, id);
  for (const Ids& ids : {once, wide}) {
    const Prompt prompt = model().prompt(ids, {pictures(1, 4, 6), pictures(2, 2, 4)});
    CHECK(prompt.ids == wide);
    REQUIRE(prompt.segments.size() == 3);
    CHECK(media_count(prompt.segments) == 2);
    CHECK(prompt.segments[0].medium == 0);
    CHECK(prompt.segments[1].medium == 1);
    CHECK(prompt.segments[2].medium == 1);
    CHECK(prompt.segments[2].first == 8);
    CHECK(prompt.segments[2].count() == 2);
    // Each slice begins anew: text goes on behind the larger side.
    CHECK(integers(prompt.position_ids[0]) ==
          Ids{0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 7, 8, 8, 10, 11, 12, 13, 13, 15, 16});
    CHECK(integers(prompt.position_ids[2]) ==
          Ids{0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16});
    CHECK(prompt.next_position == 17);
  }
  const auto prompt = [](const Ids& ids, std::vector<Patches> patches) {
    return model().prompt(ids, std::move(patches));
  };
  CHECK_THROWS_WITH_AS(prompt({kImage, 1, kImage}, {pictures(2, 2, 2)}),
                       doctest::Contains("image 1 has 2 temporal slices, which only videos have"), Error);
  CHECK_THROWS_WITH_AS(prompt({kVideo, 1}, {pictures(2, 2, 2)}), doctest::Contains("2 images were given"),
                       Error);
  CHECK_THROWS_WITH_AS(prompt({kVideo, 1}, {}), doctest::Contains("more image places"), Error);
  CHECK_THROWS_AS(prompt({kVideo, 1}, {{at::zeros({3, 1536}), {2, 2, 2}}}), Error);
  CHECK_THROWS_AS(prompt({kVideo, 1}, {{at::zeros({0, 1536}), {2, 0, 2}}}), Error);
  CHECK_THROWS_AS(prompt({kVideo, 1}, {{at::zeros({4, 1536}), {-1, 2, 2}}}), Error);
}

TEST_CASE("the config as transformers 5 writes it") {
  const at::Tensor published = rope_with([](json&) {});
  const at::Tensor later = rope_with([](json& config) {
    json& text = config["text_config"];
    text["rope_parameters"] = text["rope_scaling"];
    text["rope_parameters"]["rope_theta"] = text["rope_theta"];
    text.erase("rope_scaling");
    text.erase("rope_theta");
    text.erase("tie_word_embeddings");
    config["vision_config"]["model_type"] = "qwen3_vl_vision";
    config["dtype"] = "float32";
  });
  CHECK(at::equal(published, later));
  CHECK_FALSE(
      at::equal(published, rope_with([](json& config) { config["text_config"]["rope_theta"] = 1e4; })));
  CHECK((checkpoint_dtype(read_json(base() / "config.json")) == at::kFloat));
  CHECK(end_ids(read_json(base() / "config.json"), "config.json") == Ids{556});
}

TEST_CASE("modules leave a base its scaled positions, in its part for texts, too") {
  const json modules = read_json(base().parent_path() / "nm_main/config.json");
  const Changed folder([](json& config) {
    config["text_config"]["rope_scaling"].update(
        {{"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 4096}});
  });
  LoadOptions options{.dtype = at::kFloat};
  CHECK(load_vlm(folder.dir(), options)->max_positions() == 16384);
  options.config_overrides = modules;
  CHECK(load_vlm(folder.dir(), options)->max_positions() == 16384);
}
