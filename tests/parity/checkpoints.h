#pragma once

#include <cstdlib>

#include "glimpse/image/clip_image.h"
#include "glimpse/models/vlm.h"
#include "golden_case.h"

#undef CHECK
#include <doctest/doctest.h>

namespace glimpse::test {

/// The value of an environment variable that `meaning` explains.
inline std::string required(const char* variable, const char* meaning) {
  const char* value = std::getenv(variable);
  REQUIRE_MESSAGE(value != nullptr, variable << " " << meaning);
  return value;
}

/// The random checkpoints and their cases.
inline std::filesystem::path checkpoints() {
  return required("GLIMPSE_PARITY_DIR", "must name the folder that make_checkpoints.py and its like wrote");
}

/// A case's images as the encoder's input.
inline std::vector<Patches> patches_of(const GoldenCase& parity) {
  std::vector<Patches> patches;
  if (!parity.has("pixel_values")) return patches;
  if (parity.has("image_sizes")) {  // pictures in tiles
    const std::vector<int64_t> sizes = parity.integers("image_sizes"), counts = parity.integers("tiles");
    int64_t first = 0;
    for (size_t i = 0; i < counts.size(); ++i) {
      Patches picture;
      std::vector<at::Tensor> tiles;
      for (int64_t tile = 0; tile < counts[i]; ++tile) {
        picture = cut_patches(parity["pixel_values"][first++], 14);
        tiles.push_back(picture.pixel_values);
      }
      picture.pixel_values = at::cat(tiles);
      picture.grid.t = static_cast<int>(counts[i]);
      picture.height = static_cast<int>(sizes[2 * i]);
      picture.width = static_cast<int>(sizes[2 * i + 1]);
      patches.push_back(picture);
    }
    return patches;
  }
  if (!parity.has("image_grid_thw")) {  // whole pictures
    for (const at::Tensor& picture : parity["pixel_values"].unbind())
      patches.push_back(cut_patches(picture, 14));
    return patches;
  }
  const std::vector<int64_t> sizes = parity.integers("image_grid_thw");
  int64_t first = 0;
  for (size_t i = 0; i < sizes.size(); i += 3) {
    const Grid grid{static_cast<int>(sizes[i]), static_cast<int>(sizes[i + 1]),
                    static_cast<int>(sizes[i + 2])};
    const int64_t count = sizes[i] * sizes[i + 1] * sizes[i + 2];
    patches.push_back({parity["pixel_values"].narrow(0, first, count), grid});
    first += count;
  }
  return patches;
}

}  // namespace glimpse::test
