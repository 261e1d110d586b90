#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "glimpse/io/checkpoint.h"

namespace glimpse {

/// What the member quantization_config of a config.json says of the checkpoint's linear layers.
struct Quantization {
  enum class Method { none, glimpse, awq, gptq, fp8 };
  Method method = Method::none;
  int bits = 0;
  int64_t group = 0;                    ///< awq, gptq: inputs that share a scale; 0: all
  bool zeros_less_one = true;           ///< gptq: checkpoint_format is "gptq", not "gptq_v2"
  bool shuffled = false;                ///< gptq: desc_act, inputs are in groups of any order
  int64_t block_out = 0, block_in = 0;  ///< fp8: sizes of the blocks that have a scale; 0: one scale for all

  /// Of a whole config.json, which `where` names. Error naming the field for every method, format and number
  /// that is not read here.
  static Quantization of(const nlohmann::json& config, const std::string& where);
  /// For people: "AWQ, 4 bits, groups of 128"; "" for none.
  std::string text() const;
  /// Whether layers are read by other tensors than a weight.
  bool is_packed() const { return method != Method::none && method != Method::glimpse; }
};

/// Opens the checkpoint in `dir` (see Weights::open). Layers that are packed by AWQ, GPTQ or as FP8 appear as
/// plain weights [out, in], which are computed in float32 whenever they are asked for, rounded once to the
/// type that is wanted; other tensors stay as they are. Error naming the layer when its tensors are missing
/// or do not fit each other, and when layers are packed but the config does not say how.
Weights open_quantized(const std::filesystem::path& dir, const Quantization& how, Weights::Rename rename);

}  // namespace glimpse
