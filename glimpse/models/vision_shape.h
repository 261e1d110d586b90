#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <vector>

#include "glimpse/image/patches.h"

namespace glimpse {

/// The part of a config.json that describes the language model.
inline const nlohmann::json& text_config(const nlohmann::json& config) {
  return config.contains("text_config") ? config.at("text_config") : config;
}

/// Shape of a vision encoder as it runs, for counting its operations.
struct VisionShape {
  int64_t depth = 0, hidden = 0, heads = 0, intermediate = 0, patch_values = 0, merge = 1;
  int64_t window_tokens = 0;         ///< 0: every block attends to the whole frame
  std::vector<int64_t> full_blocks;  ///< those that attend to the whole frame
  int64_t mlp_matrices = 3;          ///< of hidden x intermediate
  int64_t extra_tokens = 0;          ///< beside the patches (class token)
  double projector = 0;              ///< numbers in the matrices that make one visual token of its patches
  int64_t patch = 14;                ///< side in pixels
  int64_t tile = 0;                  ///< side in tokens of what the encoder sees at once; 0: a whole picture

  /// Merged patches of a segment with `rows` x `cols` tokens as the encoder runs them: a frame per tile.
  Grid frames(int64_t rows, int64_t cols) const;
  /// Merged patches in each window that a block which is not full attends within.
  std::vector<int64_t> windows(const Grid& grid) const;
};

/// Of a checkpoint with this config.json, as its family knows it; `dir` is where it is, for layouts that keep
/// the encoder apart. Error for an unknown family, and of nlohmann::json for a config that leaves a size out.
VisionShape vision_shape(const nlohmann::json& config, const std::filesystem::path& dir = {});

}  // namespace glimpse
