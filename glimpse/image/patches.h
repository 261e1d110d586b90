#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <span>

#include "glimpse/image/boxes.h"

namespace glimpse {

/// Size of the patch grid: frames (or tiles), rows and columns.
struct Grid {
  int t = 1;
  int h = 0;
  int w = 0;
  bool operator==(const Grid&) const = default;
};

/// One picture as an encoder takes it.
struct Patches {
  /// [t*h*w, values of a patch] float32 on the CPU. Qwen: rows go merge unit by merge unit (row-major over
  /// units, then row-major inside one), columns are [channel, frame, y, x]. CLIP: rows are row-major, columns
  /// [channel, y, x].
  at::Tensor pixel_values;
  Grid grid;
  /// What the grid covers, in parts of the picture's sides: inside 0..1 after a crop, beyond after padding.
  Box area = whole_image;
  /// The picture's own size in pixels, where the tokens' places follow from it: of pictures in tiles, whose
  /// grid has a frame per tile.
  int width = 0, height = 0;
};

/// A hash of the pictures' values, the same anywhere.
uint64_t pictures_hash(std::span<const Patches> pictures);

}  // namespace glimpse
