#include "glimpse/models/config.h"

#include <algorithm>

#include "glimpse/base/json_file.h"

namespace glimpse {

namespace {
constexpr int64_t kMaxSize = int64_t{1} << 30, kMaxLayers = 1 << 16;
}

using nlohmann::json;

json without_nulls(json value) {
  if (value.is_object())
    for (auto entry = value.begin(); entry != value.end();)
      entry = entry->is_null() ? value.erase(entry) : std::next(entry);
  if (value.is_structured())
    for (json& each : value) each = without_nulls(std::move(each));
  return value;
}

bool scales_rope(const json& rope) {
  const auto scales = [&](const char* key) {
    const json& kind = member(rope, key);
    return !kind.is_null() && kind != "default" && kind != "mrope";
  };
  return scales("type") || scales("rope_type");
}

json rope_settings(const json& text, const json& top, const std::string& where) {
  json settings = json::object();
  for (const json* part : {&top, &text}) {
    const json* other = nullptr;
    for (const char* key : {"rope_scaling", "rope_parameters"}) {
      const json& found = member(*part, key);
      if (found.is_null()) continue;
      check(found.is_object(), where, ": ", key, " has an unexpected value ", json_text(found));
      check(!other || scales_rope(*other) == scales_rope(found), where,
            ": rope_scaling and rope_parameters disagree; leave out one of them");
      other = &found;
      settings = found;
    }
  }
  return settings;
}

std::vector<int64_t> sliding_windows(const json& text, int64_t layers, int64_t context,
                                     const std::string& where) {
  const json& kinds = member(text, "layer_types");
  check(kinds.is_null() || kinds.is_array(), where, ": layer_types has an unexpected value ",
        json_text(kinds));
  check(kinds.is_null() || static_cast<int64_t>(kinds.size()) == layers, where, ": layer_types has ",
        kinds.size(), " members, expected one for each of ", layers, " layers");
  for (const json& kind : kinds)
    check(kind == "full_attention" || kind == "sliding_attention", where, ": layer_types holds ",
          json_text(kind), ", which is not supported");
  const int64_t first = setting(text, "use_sliding_window", false, where)
                            ? setting<int64_t>(text, "max_window_layers", 80, where)
                            : layers;
  const auto window = setting<int64_t>(text, "sliding_window", context, where);
  const auto slides = [&](int64_t l) {
    return kinds.is_null() ? l >= first : kinds[l] == "sliding_attention";
  };
  std::vector<int64_t> windows(layers);
  for (int64_t l = 0; l < layers; ++l) {
    check(!slides(l) || window > 0, where, ": sliding_window is ", window, ", expected at least 1");
    if (slides(l) && window < context) windows[l] = window;
  }
  return std::ranges::count(windows, 0) == layers ? std::vector<int64_t>() : windows;
}

bool tied_head(const json& text, const json& top) {
  return top.value("tie_word_embeddings", text.value("tie_word_embeddings", false));
}

std::vector<int64_t> end_ids(const nlohmann::json& config, const std::string& where) {
  constexpr const char* key = "eos_token_id";
  if (config.is_object() && !config.contains(key) && config.contains("text_config"))
    return end_ids(config["text_config"], where);
  if (member(config, key).is_array()) return need<std::vector<int64_t>>(config, key, where);
  const auto id = setting<int64_t>(config, key, -1, where);
  return id < 0 ? std::vector<int64_t>() : std::vector{id};
}

bool merge_adapters(Weights& weights, const std::vector<std::filesystem::path>& adapters, bool tied) {
  // A quantised head is one of its own already.
  if (tied && !adapters.empty() && !weights.contains("lm_head.weight_scale"))
    return !weights.merge_adapters(adapters, "model.embed_tokens.weight", "lm_head.weight");
  for (const auto& adapter : adapters) weights.merge_adapter(adapter);
  return tied;
}

DecoderConfig decoder_config(const json& text, const json& top, const std::string& where) {
  DecoderConfig c;
  c.hidden_size = need<int64_t>(text, "hidden_size", where);
  c.intermediate_size = need<int64_t>(text, "intermediate_size", where);
  c.layers = need<int64_t>(text, "num_hidden_layers", where);
  c.heads = need<int64_t>(text, "num_attention_heads", where);
  c.kv_heads = text.value("num_key_value_heads", c.heads);
  const bool own_head_dim = !member(text, "head_dim").is_null();
  check(c.heads > 0 && c.kv_heads > 0 && c.heads % c.kv_heads == 0 &&
            (own_head_dim || c.hidden_size % c.heads == 0),
        where, ": hidden_size ", c.hidden_size, ", num_attention_heads ", c.heads,
        " and num_key_value_heads ", c.kv_heads, " do not divide");
  c.head_dim = text.value("head_dim", c.hidden_size / c.heads);
  c.vocab_size = need<int64_t>(text, "vocab_size", where);
  // Products of two sizes must stay far from overflow.
  for (const int64_t size : {c.hidden_size, c.intermediate_size, c.layers, c.heads, c.head_dim, c.vocab_size})
    check(size > 0 && size < kMaxSize, where, ": a size of the language model is ", size);
  check(c.layers < kMaxLayers, where, ": num_hidden_layers is ", c.layers);
  check(c.head_dim % 2 == 0, where, ": the head size ", c.head_dim,
        " is odd, but rotary embedding turns pairs of numbers");
  c.rms_norm_eps = text.value("rms_norm_eps", 1e-6);
  c.tied_head = tied_head(text, top);
  return c;
}

}  // namespace glimpse
