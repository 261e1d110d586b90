#include "glimpse/models/llava_settings.h"

#include <algorithm>

#include "glimpse/models/config.h"
#include "glimpse/models/source.h"

namespace glimpse {

using nlohmann::json;
namespace fs = std::filesystem;

namespace {

// The mark of an image in the original code; no token has it.
constexpr int64_t kImagePlace = -200;

// A text config leaves out what equals its format's defaults.
json text_defaults(bool mistral) {
  json text = {{"hidden_size", 4096},       {"intermediate_size", 11008},      {"num_hidden_layers", 32},
               {"num_attention_heads", 32}, {"max_position_embeddings", 2048}, {"vocab_size", 32000}};
  if (mistral)
    text.update(
        {{"intermediate_size", 14336}, {"num_key_value_heads", 8}, {"max_position_embeddings", 131072}});
  return text;
}

}  // namespace

LlavaSettings::LlavaSettings(const fs::path& dir, const json& config)
    : where((fs::is_regular_file(dir) ? dir : dir / "config.json").string()) {
  if (is_converted(config))
    read_converted(dir, config);
  else
    read_original(dir, config);
  for (const char* key : {"attention_bias", "mlp_bias"})
    check(!text.value(key, false), where, ": ", key, " is not supported with this family");
  expect(text, "hidden_act", "silu");
}

bool LlavaSettings::in_tiles(const json& config) {
  return member(config, "image_aspect_ratio") == "anyres" ||
         config.value("model_type", "").starts_with("llava_next");
}

void LlavaSettings::read_converted(const fs::path& dir, const json& config) {
  const json own = need<json>(config, "text_config", where);
  const bool next = in_tiles(config);
  const json& kind = member(own, "model_type");
  const bool mistral = next && kind == "mistral";
  const std::vector<json> llama = {nullptr, "llama", "llava"};
  check(mistral || std::find(llama.begin(), llama.end(), kind) != llama.end(), where,
        ": text_config: model_type ", json_text(kind), " is not supported, only llama",
        next ? " and mistral" : "");
  text = text_defaults(mistral);
  text.update(own);
  vision = need<json>(config, "vision_config", where);
  state = config.value("vision_feature_layer", int64_t{-2});
  expect(config, "vision_feature_select_strategy", "default");
  expect(config, "projector_hidden_act", "gelu");
  const char* const key = config.contains("image_token_index") ? "image_token_index" : "image_token_id";
  place.token = place.stored = config.value(key, int64_t{32000});
  preprocessor_dir = dir;
  if (next) read_resolutions(config, false);
  if (mistral) slide_everywhere();
  if (mistral)
    format = std::make_unique<MistralChat>();
  else
    format = std::make_unique<LlavaHfChat>();
}

void LlavaSettings::read_original(const fs::path& dir, const json& config) {
  text = config;
  place = {kImagePlace, 0, 1};
  const bool inside = config.contains("vision_config");
  preprocessor_dir = inside ? dir : tower_dir(dir, config);
  vision = inside ? config : open_model_dir(preprocessor_dir)->config();
  if (vision.contains("vision_config")) vision = json(vision["vision_config"]);
  state = config.value("mm_vision_select_layer", int64_t{-2});
  expect(config, "mm_vision_select_feature", "patch");
  expect(config, "mm_projector_type", "mlp2x_gelu");
  for (const char* key : {"mm_use_im_start_end", "mm_use_im_patch_token"})
    check(!config.value(key, false), where, ": ", key, " is not supported");
  const json& ratio = member(config, "image_aspect_ratio");
  check(ratio.is_null() || ratio == "pad" || ratio == "square" || ratio == "anyres", where,
        ": image_aspect_ratio ", ratio.dump(), " is not supported, only pad, square and anyres");
  pad = ratio == "pad";
  const bool next = in_tiles(config);
  const bool mistral = setting(config, "model_type", std::string(), where).starts_with("llava_mistral");
  if (next) {
    expect(config, "mm_patch_merge_type", "spatial_unpad");
    read_resolutions(config, true);
    rounds = false;
  }
  if (mistral) slide_everywhere();
  if (mistral)
    format = std::make_unique<MistralChat>(kImagePlace);
  else
    format = std::make_unique<VicunaChat>(kImagePlace, next ? "human" : "user");
}

// Pairs that the first public code reads as width and height, transformers as height and width.
void LlavaSettings::read_resolutions(const json& config, bool width_first) {
  for (const auto& pair :
       setting(config, "image_grid_pinpoints",
               std::vector<std::vector<int>>{{336, 672}, {672, 336}, {672, 672}, {1008, 336}, {336, 1008}},
               where)) {
    check(pair.size() == 2, where, ": image_grid_pinpoints has a resolution of ", pair.size(),
          " numbers, expected 2");
    resolutions.push_back(width_first ? Size{pair[1], pair[0]} : Size{pair[0], pair[1]});
  }
  check(!resolutions.empty(), where, ": image_grid_pinpoints is empty");
}

// Mistral's attention slides in all layers wherever its config gives a window, without a word of which.
void LlavaSettings::slide_everywhere() {
  text["use_sliding_window"] = !member(text, "sliding_window").is_null();
  text["max_window_layers"] = 0;
}

void LlavaSettings::expect(const json& object, const char* key, const char* only) const {
  const json& value = member(object, key);
  check(value.is_null() || value == only, where, ": ", key, " ", value.dump(), " is not supported, only ",
        only);
}

fs::path LlavaSettings::tower_dir(const fs::path& dir, const json& config) {
  const auto name = need<std::string>(config, "mm_vision_tower", (dir / "config.json").string());
  const fs::path own = fs::path(name).filename();
  std::error_code ignored;
  for (const fs::path& place : {dir / own, fs::absolute(dir).parent_path() / own})
    if (!own.empty() && fs::exists(place / "config.json", ignored)) return place;
  return resolve_model_dir(name);
}

}  // namespace glimpse
