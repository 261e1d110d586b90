#pragma once

#include <ATen/ATen.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "glimpse/image/boxes.h"

namespace glimpse {

/// Size of the patch grid: frames (or tiles), rows and columns.
struct Grid {
  int t = 1;
  int h = 0;
  int w = 0;
  bool operator==(const Grid&) const = default;
};

/// When a video shows what it shows.
struct Clip {
  double seconds_per_grid = 0;  ///< from one temporal slice to the next, at the sampled rate
  /// In the video, of each slice: the mean of its frames' times. Empty: not known, counted from 0.
  std::vector<double> seconds;

  /// Of a slice.
  double at(int64_t slice) const {
    return seconds.empty() ? static_cast<double>(slice) * seconds_per_grid : seconds.at(slice);
  }
};

/// What every byte of every channel stands for.
using LevelTable = std::array<std::array<float, 256>, 3>;

/// One picture or video as an encoder takes it.
struct Patches {
  /// [t*h*w, values of a patch] float32 on the CPU. Qwen: rows go merge unit by merge unit (row-major over
  /// units, then row-major inside one), columns are [channel, frame, y, x]. CLIP: rows are row-major, columns
  /// [channel, y, x].
  /// Of a video they are bytes, which take a quarter of the memory.
  at::Tensor pixel_values;
  Grid grid;
  /// What the grid covers, in parts of the picture's sides: inside 0..1 after a crop, beyond after padding.
  Box area = whole_image;
  /// The picture's own size in pixels, where the tokens' places follow from it: of pictures in tiles, whose
  /// grid has a frame per tile.
  int width = 0, height = 0;
  std::optional<Clip> clip = {};                  ///< of a video, whose grid has a frame per temporal slice
  std::shared_ptr<const LevelTable> levels = {};  ///< of bytes, whose columns are [channel, ...]

  /// The numbers of `count` patches from `first` on [count, values of a patch], float32 where there were
  /// bytes.
  at::Tensor values(int64_t first, int64_t count) const;
};

/// A hash of the pictures' values, the same anywhere.
uint64_t pictures_hash(std::span<const Patches> pictures);

}  // namespace glimpse
