#include "glimpse/eval/flops.h"

#include "glimpse/base/json_file.h"
#include "glimpse/models/llava.h"

namespace glimpse {

namespace {

using nlohmann::json;

VisionShape qwen(const json& c) {
  const auto number = [&](const char* key) { return c.at(key).get<int64_t>(); };
  const int64_t patch = number("patch_size"), merge = number("spatial_merge_size");
  const double unit = static_cast<double>(merge * merge * number("hidden_size"));
  return {number("depth"),
          number("hidden_size"),
          number("num_heads"),
          number("intermediate_size"),
          c.value("in_chans", int64_t{3}) * c.value("temporal_patch_size", int64_t{2}) * patch * patch,
          merge,
          number("window_size") / merge / patch,
          static_cast<int64_t>(c.at("fullatt_block_indexes").size()),
          3,
          0,
          unit * (unit + static_cast<double>(number("out_hidden_size"))),
          patch};
}

VisionShape clip(const json& config) {
  const json& c = config.at("vision_config");
  const auto number = [&](const char* key) { return c.at(key).get<int64_t>(); };
  const int64_t patch = number("patch_size"), out = text_config(config).value("hidden_size", int64_t{4096});
  const int64_t depth = number("num_hidden_layers") + 1 + config.value("vision_feature_layer", int64_t{-2});
  return {depth,
          number("hidden_size"),
          number("num_attention_heads"),
          number("intermediate_size"),
          3 * patch * patch,
          1,
          0,
          depth,
          2,
          1,
          static_cast<double>(out * (number("hidden_size") + out)),
          patch};
}

}  // namespace

const json& text_config(const json& config) {
  return config.contains("text_config") ? config.at("text_config") : config;
}

VisionShape VisionShape::from_json(const json& config) {
  return config.at("model_type") == "llava" ? clip(config) : qwen(config.at("vision_config"));
}

VisionShape VisionShape::of(const std::filesystem::path& dir, const json& config) {
  if (!config.contains("mm_vision_tower")) return from_json(config);
  json whole = config;
  const json tower = read_json(Llava::tower_dir(dir, config) / "config.json");
  whole["vision_config"] = tower.contains("vision_config") ? tower["vision_config"] : tower;
  whole["vision_feature_layer"] = config.value("mm_vision_select_layer", int64_t{-2});
  return clip(whole);
}

double segment_flops(const std::vector<int64_t>& lengths, double width) {
  double pairs = 0;
  for (const int64_t n : lengths) pairs += static_cast<double>(n) * static_cast<double>(n);
  return 4.0 * width * pairs;
}

double vision_linears_flops(const VisionShape& v, double rows) {
  return linear_flops(rows, v.hidden, 4 * v.hidden) +
         static_cast<double>(v.mlp_matrices) * linear_flops(rows, v.hidden, v.intermediate);
}

double vision_flops(const VisionShape& v, const Grid& grid) {
  const int64_t unit = v.merge * v.merge, patches = int64_t{grid.t} * grid.h * grid.w;
  const double rows = static_cast<double>(patches + v.extra_tokens);
  double attention = static_cast<double>(v.full_blocks) *
                     segment_flops(std::vector<int64_t>(grid.t, patches / grid.t + v.extra_tokens), v.hidden);
  if (v.window_tokens > 0)
    attention += static_cast<double>((v.depth - v.full_blocks) * unit * unit) *
                 segment_flops(vit_windows({grid}, v.merge, v.window_tokens).window_lengths, v.hidden);
  return linear_flops(patches, v.patch_values, v.hidden) + v.depth * vision_linears_flops(v, rows) +
         attention + 2.0 * static_cast<double>(patches / unit) * v.projector;
}

double text_flops(const TextTower& t, double rows) {
  const double d = t.hidden_size;
  const double layer = linear_flops(rows, d, 4 * d) + 2 * linear_flops(rows, d, t.intermediate_size) +
                       2 * d * rows * (rows + 1);
  return t.layers * layer + linear_flops(1, d, t.width);
}

double layer_weights(const DecoderConfig& c) {
  const double q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  return c.hidden_size * (2 * q + 2 * kv + 3.0 * c.intermediate_size);
}

double layer_flops(const DecoderConfig& c, double rows) {
  return 2 * rows * layer_weights(c) + 4.0 * c.heads * c.head_dim * rows * (rows + 1) / 2;
}

double head_flops(const DecoderConfig& c) {
  return linear_flops(1, c.hidden_size, c.vocab_size);
}

double prefill_flops(const DecoderConfig& c, double rows) {
  return c.layers * layer_flops(c, rows) + head_flops(c);
}

double step_flops(const DecoderConfig& c, double length) {
  return 2 * layer_weights(c) + 4.0 * c.heads * c.head_dim * length;
}

double look_ahead_flops(const DecoderConfig& c, double rows) {
  const double q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  return linear_flops(rows, c.hidden_size, kv) + linear_flops(1, c.hidden_size, q) + 2 * q * rows;
}

double vip_flops(const VipConfig& c, double n) {
  if (c.type == VipConfig::Type::dummy) return 0;
  const double size = c.fuse_size, cond = c.type == VipConfig::Type::v1 ? c.cond_size : 0, both = size + cond;
  const double projections = 2 * linear_flops(n, both, both) + 2 * linear_flops(n, size, size);
  const double layer = linear_flops(n, c.visual_size, cond) + projections + 4 * n * n * both +
                       3 * linear_flops(n, size, 2 * size);
  return linear_flops(n, c.attention_size, size) + c.layers * layer + linear_flops(n, size, 1);
}

double pruned_prefill_flops(const DecoderConfig& c, const VipConfig& vip, double rows, double visual,
                            double left, double cut) {
  return (cut + 1) * layer_flops(c, rows + 1) + vip_flops(vip, visual) +
         (c.layers - cut - 1) * layer_flops(c, left) + head_flops(c);
}

double kv_row_bytes(const DecoderConfig& c) {
  return 2.0 * 2 * c.layers * c.kv_heads * c.head_dim;
}

}  // namespace glimpse
