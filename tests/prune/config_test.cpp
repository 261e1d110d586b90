// A new-modules config.json and the errors of bad ones.
#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"
#include "glimpse/prune/glimpse.h"

#undef CHECK
#include <doctest/doctest.h>

using namespace glimpse;
using nlohmann::json;

namespace {

const BaseShape kBase = {6, 256, 4, 6, 128, 1e-6};
const std::filesystem::path kModules = std::filesystem::path(GLIMPSE_SOURCE_DIR) / "models/tiny/new_modules";

GlimpseConfig changed(const json& patch) {
  json config = read_json(kModules / "config.json");
  config.update(patch);
  return GlimpseConfig::from_json(config, kBase);
}

std::string error_of(const json& patch) {
  try {
    changed(patch);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("the built-in modules' config") {
  const GlimpseConfig c = changed(json::object());
  CHECK(c.selected_layers == std::vector<int64_t>{3});
  CHECK(c.selected_visual_layers == std::vector<int64_t>{5, 3, 2, 1});
  CHECK(c.reduce_layer == 3);
  CHECK(c.vip.attention_size == 4);
  CHECK(c.vip.visual_size == 128);
  CHECK(c.vip.fuse_size == 64);
  CHECK(c.vip.layers == 4);
}

TEST_CASE("absent, null and negative mean: not set") {
  const GlimpseConfig c =
      changed({{"max_remain_ratio", -1}, {"min_remain_num", nullptr}, {"le_layers", nullptr}});
  CHECK_FALSE(c.rule.max_keep);
  CHECK_FALSE(c.rule.min_keep);
  CHECK(c.le_layers == std::vector<int64_t>{0, 1, 2, 3, 4, 5});
  CHECK(changed({{"max_remain_ratio", 0.111}}).rule.max_keep == 0.111);
  CHECK(changed({{"max_remain_ratio", 0}}).rule.max_keep == 0);
  CHECK(changed({{"anchor_positions", {"tl", "br"}}}).rule.anchors.size() == 2);
}

TEST_CASE("variants of the predictor") {
  CHECK(changed({{"attn_fuse_type", "AttnFuserV2"}}).vip.type == VipConfig::Type::v2);
  CHECK(changed({{"attn_fuse_type", "AttnFuserV2"}}).selected_visual_layers.empty());
  const GlimpseConfig dummy =
      changed({{"attn_fuse_type", "AttnFuserDummy"}, {"selected_visual_layers", nullptr}});
  CHECK(dummy.vip.type == VipConfig::Type::dummy);
  CHECK(changed({{"use_attention_logits", false}}).vip.log_softmax_input);
  CHECK(changed({{"le_norm_type", "layernorm"}}).layer_norm);
}

TEST_CASE("errors of the config") {
  const auto starts = [](const json& patch, const std::string& expected) {
    const std::string got = error_of(patch);
    CAPTURE(patch.dump());
    CHECK_MESSAGE(got.starts_with("pruning config: " + expected), got);
  };
  starts({{"selected_layers", json::array()}}, "selected_layers is missing or empty");
  starts({{"selected_layers", nullptr}}, "selected_layers is missing or empty");
  starts({{"selected_layers", "3"}}, "selected_layers has an unexpected value \"3\"");
  starts({{"selected_layers", {6}}}, "selected_layers names layer 6 but the base model has 6");
  starts({{"selected_layers", {-1}}}, "selected_layers names layer -1");
  starts({{"selected_layers", {4}}}, "selected layer 4 lies behind reduce_layer 3");
  starts({{"reduce_layer", 6}}, "reduce_layer names layer 6");
  starts({{"reduce_layer", "x"}}, "reduce_layer has an unexpected value");
  starts({{"selected_visual_layers", {1, 2, 3, 6}}}, "selected_visual_layers names layer 6");
  starts({{"selected_visual_layers", nullptr}}, "selected_visual_layers is missing or empty");
  starts({{"le_layers", {1, 2}}}, "le_layers must be ascending and start with layer 0");
  starts({{"le_layers", {0, 2, 1}}}, "le_layers must be ascending");
  starts({{"le_layers", {0, 1, 1}}}, "le_layers must be ascending");
  starts({{"le_length", 2}}, "le_length 2 is not supported");
  starts({{"le_norm_type", "batchnorm"}}, "le_norm_type 'batchnorm' is unknown");
  starts({{"attn_fuse_type", "AttnFuserV9"}}, "attn_fuse_type 'AttnFuserV9' is unknown");
  starts({{"attn_fuse_type", 3}}, "attn_fuse_type has an unexpected value 3");
  starts({{"attn_fuse_hidden_act", "gelu"}}, "attn_fuse_hidden_act 'gelu' is not supported");
  starts({{"reduce_threshold", "half"}}, "reduce_threshold has an unexpected value");
  starts({{"reduce_threshold", 2}}, "reduce_threshold 2 is outside [0, 1]");
  starts({{"reduce_threshold", -0.5}}, "reduce_threshold -0.5 is outside [0, 1]");
  starts({{"selected_layers", {3, 3}}}, "selected_layers names layer 3 twice");
}

TEST_CASE("a base model's config is no pruning config") {
  const json base = read_json(kModules.parent_path() / "model/config.json");
  CHECK_THROWS_WITH_AS(
      GlimpseConfig::from_json(base, kBase),
      doctest::Contains(
          "this config.json has no pruning fields (attn_fuse_type, reduce_layer, ...); give the folder"),
      Error);
  CHECK_THROWS_AS(GlimpseConfig::from_json(json::array(), kBase), Error);
}

TEST_CASE("modules that do not fit the base model") {
  const auto options = at::TensorOptions(at::kFloat);
  CHECK(GlimpseModules::load(kModules, kBase, options)->token.added.size() == 6);
  BaseShape wider = kBase;
  wider.hidden_size = 512;
  CHECK_THROWS_WITH_AS(GlimpseModules::load(kModules, wider, options), doctest::Contains("le_proj.weight"),
                       Error);
  BaseShape heads = kBase;
  heads.heads = 8;
  CHECK_THROWS_WITH_AS(GlimpseModules::load(kModules, heads, options),
                       doctest::Contains("attn_in_proj.weight"), Error);
  CHECK_THROWS_AS(GlimpseModules::load(kModules.parent_path() / "model", kBase, options), Error);
  CHECK_THROWS_AS(GlimpseModules::load("/nowhere", kBase, options), Error);
}
