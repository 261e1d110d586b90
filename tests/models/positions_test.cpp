// What config.json may say of positions: scaled rotary embeddings, sliding windows.
#include "glimpse/models/config.h"
#include "glimpse/models/rope_scaling.h"
#include "models/damaged.h"

using namespace glimpse;
using nlohmann::json;
using test::BrokenModel;
using test::contains;
using test::with_config;

namespace {

// With more, or nothing, in the rotary embedding's settings, under either name, on either level.
std::string with_rope(const json& more, const char* key = "rope_scaling", bool nested = false) {
  return with_config([&](json& c) {
    json whole = c["rope_scaling"];
    if (!more.is_null()) whole.update(more);
    c.erase("rope_scaling");
    if (nested) c["text_config"] = c;
    c[key] = whole;
  });
}

}  // namespace

TEST_CASE("what is known of scaled rotary embeddings") {
  CHECK(with_rope({}) == "no error");
  CHECK(with_rope({}, "rope_parameters") == "no error");
  CHECK(with_rope({{"type", "default"}, {"rope_type", "default"}}) == "no error");
  CHECK(with_rope({{"rope_type", "default"}}) == "no error");  // beside "mrope"
  for (const bool nested : {false, true})
    for (const char* key : {"rope_scaling", "rope_parameters"}) {
      for (const char* kind : {"linear", "dynamic", "yarn"})
        CHECK(with_rope({{"type", kind}, {"factor", 4}}, key, nested) == "no error");
      const json llama3 = {{"type", "llama3"},
                           {"factor", 8},
                           {"low_freq_factor", 1},
                           {"high_freq_factor", 4},
                           {"original_max_position_embeddings", 1024}};
      CHECK(with_rope(llama3, key, nested) == "no error");
      contains(with_rope({{"type", "longrope"}, {"factor", 4}}, key, nested),
               {"config.json", "type \"longrope\" is not supported (known: default, mrope, linear"});
    }
  contains(with_rope({{"type", 3}}), {"type 3 is not supported"});
  contains(with_rope({{"type", "linear"}, {"rope_type", "yarn"}, {"factor", 4}}),
           {"type is \"linear\" but rope_type is \"yarn\""});
  contains(with_rope({{"rope_type", "yarn"}, {"factor", 4}}), {"type is \"mrope\" but rope_type is"});
}

TEST_CASE("a field of a scaled rotary embedding that is not known, or makes no sense, is named") {
  const auto yarn = [](const char* key, const json& value) {
    json rope = {{"type", "yarn"}, {"factor", 4}};
    rope[key] = value;
    return with_rope(rope);
  };
  contains(with_rope({{"factor", 4}}), {"rotary embedding: factor 4 is not known with type mrope"});
  contains(with_rope({{"type", "linear"}, {"factor", 4}, {"beta_fast", 32}}), {"beta_fast 32 is not known"});
  contains(yarn("extrapolation_factor", 1), {"extrapolation_factor 1 is not known with type yarn"});
  contains(with_rope({{"full_attention", {{"type", "yarn"}}}}), {"full_attention", "is not known"});
  for (const char* kind : {"linear", "dynamic", "yarn"})
    contains(with_rope({{"type", kind}}), {"rotary embedding: factor is missing"});
  CHECK(with_rope({{"type", "yarn"}, {"original_max_position_embeddings", 1024}}) == "no error");
  for (const json& bad : {json(0.5), json(0), json(-4), json(1e300), json("4"), json::array()})
    contains(yarn("factor", bad), {"config.json: rotary embedding: factor "});
  for (const char* key : {"attention_factor", "beta_fast", "beta_slow", "rope_theta"})
    for (const json& bad : {json(0), json(-1), json("x")}) contains(yarn(key, bad), {key});
  contains(yarn("rope_theta", 1), {"rope_theta is 1"});
  contains(yarn("beta_slow", 40), {"beta_fast 32 is not above beta_slow 40"});
  contains(yarn("original_max_position_embeddings", 0), {"original_max_position_embeddings is 0"});
  contains(yarn("original_max_position_embeddings", -3), {"original_max_position_embeddings is -3"});
  contains(yarn("partial_rotary_factor", 0.5), {"partial_rotary_factor is not supported"});
  contains(with_rope({{"type", "dynamic"}, {"factor", 4}, {"original_max_position_embeddings", 64}}),
           {"original_max_position_embeddings is 64 but max_position_embeddings is 4096"});
  contains(with_rope({{"type", "llama3"}, {"factor", 4}}), {"low_freq_factor is missing"});
  contains(with_config([](json& c) { c["max_position_embeddings"] = 0; }), {"max_position_embeddings is 0"});
}

TEST_CASE("scaled positions reach further, and modules made before do not take that back") {
  const auto context = [](const json& rope, const json& modules) {
    const BrokenModel model;
    model.edit_json("config.json", [&](json& c) { c["rope_scaling"].update(rope); });
    LoadOptions options{.dtype = at::kFloat};
    options.config_overrides = modules;
    return load_vlm(model.dir(), options)->max_positions();
  };
  const json modules = read_json(test::tiny_dir() / "new_modules/config.json");
  const json yarn = {{"type", "yarn"}, {"factor", 4}, {"original_max_position_embeddings", 2048}};
  CHECK(context(json::object(), modules) == 4096);
  for (const json& overrides : {json(), modules}) {
    CHECK(context(yarn, overrides) == 8192);
    CHECK(context({{"type", "linear"}, {"factor", 2.5}}, overrides) == 10240);
    CHECK(context({{"type", "dynamic"}, {"factor", 2}}, overrides) == 8192);
  }
  // Whichever name they have for it; and modules that were made with scaling keep theirs.
  json newer = modules;
  newer["rope_parameters"] = newer["rope_scaling"];
  newer.erase("rope_scaling");
  CHECK(context(yarn, newer) == 8192);
  newer["rope_parameters"].update({{"type", "linear"}, {"factor", 3}});
  CHECK(context(yarn, newer) == 12288);
  CHECK(context(json::object(), newer) == 12288);
  contains(with_config([&](json& c) { c["rope_parameters"] = newer["rope_parameters"]; }),
           {"config.json: rope_scaling and rope_parameters disagree"});
}

TEST_CASE("a dynamically scaled embedding depends on each sequence's own length") {
  const json text = {{"max_position_embeddings", 16}, {"rope_scaling", {{"type", "dynamic"}, {"factor", 4}}}};
  const RopeScaling rope(text, text, {8, 1e4, 0}, "x", at::kCPU);
  const auto at = [&](std::vector<int64_t> positions, at::IntArrayRef shape) {
    return rope.frequencies(at::tensor(positions, at::kLong).view(shape));
  };
  const at::Tensor plain = inverse_frequencies(8, 1e4).unsqueeze(0);
  CHECK(at::equal(at({0, 15}, {1, 2}), plain));
  // One sequence turns by its largest position, of several each by its own.
  const at::Tensor longer = at({3, 20}, {1, 2});
  CHECK(longer.size(0) == 1);
  CHECK(longer[0][3].item<float>() < plain[0][3].item<float>());
  const at::Tensor several = at({3, 20, 3, 20}, {2, 2, 1});
  CHECK(at::equal(several, at::cat({plain, longer})));
  CHECK(at::equal(at({1, 3, 2, 20}, {1, 2, 2}), at::cat({plain, plain, longer, longer})));
}

TEST_CASE("layers have the sliding window that the config gives them") {
  using Windows = std::vector<int64_t>;
  const auto windows = [](const json& text) { return sliding_windows(text, 3, 4096, "x"); };
  CHECK(windows({{"use_sliding_window", true}, {"sliding_window", 8}, {"max_window_layers", 0}}) ==
        Windows{8, 8, 8});
  CHECK(windows({{"use_sliding_window", true}, {"sliding_window", 8}}).empty());
  CHECK(windows({{"use_sliding_window", true}, {"sliding_window", 8}, {"max_window_layers", 2}}) ==
        Windows{0, 0, 8});
  CHECK(windows({{"use_sliding_window", true}, {"sliding_window", 8}, {"max_window_layers", 3}}).empty());
  for (const json& window : {json(), json(4096)})
    CHECK(windows({{"use_sliding_window", true}, {"sliding_window", window}, {"max_window_layers", 0}})
              .empty());
  CHECK(windows({{"sliding_window", 8}, {"max_window_layers", 2}}).empty());
  const json kinds = {"full_attention", "sliding_attention", "full_attention"};
  CHECK(windows({{"layer_types", kinds}, {"sliding_window", 8}, {"use_sliding_window", true}}) ==
        Windows{0, 8, 0});

  const auto with = [](const json& change) { return with_config([&](json& c) { c.update(change); }); };
  CHECK(with({{"use_sliding_window", true}, {"sliding_window", 8}}) == "no error");
  contains(with({{"use_sliding_window", true}, {"max_window_layers", 2}, {"sliding_window", 0}}),
           {"config.json: sliding_window is 0, expected at least 1"});
  contains(with({{"layer_types", {"full_attention"}}}),
           {"layer_types has 1 members, expected one for each of"});
  contains(with({{"layer_types", json(6, "chunked_attention")}}),
           {"layer_types holds \"chunked_attention\""});
  contains(with({{"layer_types", "full_attention"}}), {"layer_types has an unexpected value"});
}

TEST_CASE("yarn slows pairs by how often they turn within the trained length") {
  const auto frequencies = [](bool truncate) {
    const json text = {{"rope_scaling",
                        {{"type", "yarn"},
                         {"factor", 4},
                         {"original_max_position_embeddings", 4096},
                         {"truncate", truncate}}}};
    const at::Tensor positions = at::zeros({1, 1}, at::kLong);
    return RopeScaling(text, text, {64, 1e4, 4096}, "x", at::kCPU).frequencies(positions)[0];
  };
  // Pair i of 32 turns 4096 / (2 pi 10000^(i / 32)) times: 32 times at 10.47, once at 22.51.
  const at::Tensor plain = inverse_frequencies(64, 1e4);
  for (const bool truncate : {false, true}) {
    const double low = truncate ? 10 : 10.4724, high = truncate ? 23 : 22.5135;
    const at::Tensor ratio = frequencies(truncate) / plain;
    for (int64_t pair = 0; pair < 32; ++pair) {
      const double slowed = std::clamp((static_cast<double>(pair) - low) / (high - low), 0.0, 1.0);
      CHECK(ratio[pair].item<double>() == doctest::Approx(1 - 0.75 * slowed).epsilon(1e-4));
    }
  }
}
