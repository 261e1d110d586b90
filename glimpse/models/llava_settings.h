#pragma once

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "glimpse/image/resize.h"
#include "glimpse/models/prompt.h"
#include "glimpse/text/chat.h"

namespace glimpse {

/// What the config of a LLaVA says, in one form, whichever layout it has: the original (`mm_vision_tower`) or
/// Hugging Face's conversion (`text_config` and `vision_config`).
struct LlavaSettings {
  nlohmann::json text, vision;
  std::string where;   ///< the config's file
  int64_t state = -2;  ///< hidden state of the encoder that the projector takes
  ImagePlace place;
  std::filesystem::path preprocessor_dir;
  bool pad = false;  ///< pictures are padded to squares
  std::unique_ptr<ChatFormat> format;
  /// LLaVA-NeXT: the resolutions that pictures in tiles can have; else empty. And how to count what their
  /// padding leaves (AnyresOptions).
  std::vector<Size> resolutions;
  bool rounds = true;

  /// Error for what is not supported.
  LlavaSettings(const std::filesystem::path& dir, const nlohmann::json& config);
  static bool is_converted(const nlohmann::json& config) { return config.contains("text_config"); }
  /// Whether pictures go through the encoder in tiles: LLaVA-NeXT.
  static bool in_tiles(const nlohmann::json& config);
  /// The encoder's folder of a checkpoint in the original layout: beside or inside the model's folder, else
  /// wherever the config's name leads.
  static std::filesystem::path tower_dir(const std::filesystem::path& dir, const nlohmann::json& config);

 private:
  void read_converted(const std::filesystem::path& dir, const nlohmann::json& config);
  void read_original(const std::filesystem::path& dir, const nlohmann::json& config);
  void read_resolutions(const nlohmann::json& config, bool width_first);
  void slide_everywhere();
  void expect(const nlohmann::json& object, const char* key, const char* only) const;
};

}  // namespace glimpse
