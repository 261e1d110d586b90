#pragma once

#include <cmath>
#include <nlohmann/json.hpp>

#include "glimpse/models/qwen2_5_vit.h"
#include "glimpse/nn/decoder.h"
#include "glimpse/prune/vip.h"

/// Counted arithmetic and memory traffic of the timed parts. A multiply-add is two operations. Norms,
/// rotations, activations and softmax are left out: together they are below 1 % at the published sizes.
namespace glimpse::bench {

/// The part of a config.json that describes the language model.
inline const nlohmann::json& text_config(const nlohmann::json& config) {
  return config.contains("text_config") ? config.at("text_config") : config;
}

/// Shape of the vision encoder as it runs, from a checkpoint's config.json.
struct VisionShape {
  int64_t depth = 0, hidden = 0, heads = 0, intermediate = 0, patch_values = 0, merge = 1;
  int64_t window_tokens = 0;  ///< 0: every block attends to the whole frame
  int64_t full_blocks = 0;
  int64_t mlp_matrices = 3;  ///< of hidden x intermediate
  int64_t extra_tokens = 0;  ///< beside the patches (class token)
  double projector = 0;      ///< numbers in the matrices that make one visual token of its patches

  static VisionShape from_json(const nlohmann::json& config) {
    return config.at("model_type") == "llava" ? clip(config) : qwen(config.at("vision_config"));
  }

 private:
  static VisionShape qwen(const nlohmann::json& c) {
    const auto number = [&](const char* key) { return c.at(key).get<int64_t>(); };
    const int64_t patch = number("patch_size"), merge = number("spatial_merge_size");
    const double unit = static_cast<double>(merge * merge * number("hidden_size"));
    return {number("depth"),
            number("hidden_size"),
            number("num_heads"),
            number("intermediate_size"),
            number("in_chans") * number("temporal_patch_size") * patch * patch,
            merge,
            number("window_size") / merge / patch,
            static_cast<int64_t>(c.at("fullatt_block_indexes").size()),
            3,
            0,
            unit * (unit + number("out_hidden_size"))};
  }
  static VisionShape clip(const nlohmann::json& config) {
    const nlohmann::json& c = config.at("vision_config");
    const auto number = [&](const char* key) { return c.at(key).get<int64_t>(); };
    const int64_t patch = number("patch_size"), out = text_config(config).at("hidden_size");
    const int64_t depth = number("num_hidden_layers") + 1 + config.at("vision_feature_layer").get<int64_t>();
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
            1.0 * out * (number("hidden_size") + out)};
  }
};

/// x [rows, in] times a weight [out, in].
inline double linear_flops(double rows, double in, double out) {
  return 2.0 * rows * in * out;
}

/// q k^T and p v inside segments of these lengths; `width` is heads * head size.
inline double segment_flops(const std::vector<int64_t>& lengths, double width) {
  double pairs = 0;
  for (const int64_t n : lengths) pairs += static_cast<double>(n) * static_cast<double>(n);
  return 4.0 * width * pairs;
}

/// One encoder block without its attention: qkv, proj and the MLP.
inline double vision_linears_flops(const VisionShape& v, double rows) {
  return linear_flops(rows, v.hidden, 4 * v.hidden) +
         static_cast<double>(v.mlp_matrices) * linear_flops(rows, v.hidden, v.intermediate);
}

/// Patch embedding, blocks (attention inside windows or, in full blocks, inside frames) and projector.
inline double vision_flops(const VisionShape& v, const Grid& grid) {
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

/// Numbers in the linear weights of one decoder layer.
inline double layer_weights(const DecoderConfig& c) {
  const double q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  return c.hidden_size * (2 * q + 2 * kv + 3.0 * c.intermediate_size);
}

/// One layer on the `rows` first rows of a sequence; causal attention has rows (rows + 1) / 2 pairs.
inline double layer_flops(const DecoderConfig& c, double rows) {
  return 2 * rows * layer_weights(c) + 4.0 * c.heads * c.head_dim * rows * (rows + 1) / 2;
}

inline double head_flops(const DecoderConfig& c) {
  return linear_flops(1, c.hidden_size, c.vocab_size);
}

/// Language model on `rows` embedded rows, logits of the last one.
inline double prefill_flops(const DecoderConfig& c, double rows) {
  return c.layers * layer_flops(c, rows) + head_flops(c);
}

/// The predictor on n visual tokens. Queries and keys are wider (fuse + cond) than values (fuse).
inline double vip_flops(const VipConfig& c, double n) {
  if (c.type == VipConfig::Type::dummy) return 0;
  const double size = c.fuse_size, cond = c.type == VipConfig::Type::v1 ? c.cond_size : 0, both = size + cond;
  const double projections = 2 * linear_flops(n, both, both) + 2 * linear_flops(n, size, size);
  const double layer = linear_flops(n, c.visual_size, cond) + projections + 2 * n * n * (both + size) +
                       3 * linear_flops(n, size, 2 * size);
  return linear_flops(n, c.attention_size, size) + c.layers * layer + linear_flops(n, size, 1);
}

/// Prefill that has the guide token up to layer `cut` (included) and `left` rows after it.
inline double pruned_prefill_flops(const DecoderConfig& c, const VipConfig& vip, double rows, double visual,
                                   double left, double cut) {
  return (cut + 1) * layer_flops(c, rows + 1) + vip_flops(vip, visual) +
         (c.layers - cut - 1) * layer_flops(c, left) + head_flops(c);
}

/// Bytes of weights that one decoding step reads: all layers and the head (bf16).
inline double decode_weight_bytes(const DecoderConfig& c) {
  return 2.0 * (c.layers * layer_weights(c) + 1.0 * c.hidden_size * c.vocab_size);
}

/// Bytes of keys and values of one row in all layers (bf16).
inline double kv_row_bytes(const DecoderConfig& c) {
  return 2.0 * 2 * c.layers * c.kv_heads * c.head_dim;
}

}  // namespace glimpse::bench
