#pragma once

#include <ATen/ATen.h>

#include <array>
#include <vector>

#include "glimpse/image/patches.h"

namespace glimpse {

/// Ids and settings that decide the three-component positions of Qwen's vision-language models.
struct MropeConfig {
  int64_t image_token = 0, video_token = 0, merge = 2;
  double tokens_per_second = 2;
};

/// Positions of a prompt: text counts on in all three components; the tokens of an image share a time and
/// take their row and column; what follows starts after the largest position so far.
struct MropePositions {
  at::Tensor ids;    ///< [3, T] int64: time, row, column
  int64_t next = 0;  ///< first free position
};

/// `ids` hold one image (video) id per visual token. Errors when the runs of those ids do not fit the grids.
/// `seconds_per_grid`: per video, seconds between two grid frames.
MropePositions mrope_positions(const std::vector<int64_t>& ids, const std::vector<Grid>& images,
                               const std::vector<Grid>& videos, const std::vector<double>& seconds_per_grid,
                               const MropeConfig& config);

/// Angles [T, pairs] of positions [3, T]: pair t turns with the component whose section holds it, by its
/// frequency in `frequencies` [1, pairs] or [T, pairs].
at::Tensor mrope_angles(const at::Tensor& positions, const std::vector<int64_t>& sections,
                        const at::Tensor& frequencies);

/// Qwen3-VL's interleaved order: the component that each pair turns with, [pairs] int64. Row and column take
/// turns with the time until their `sections` [3] (numbers of pairs) are used up; time has what is left.
at::Tensor interleaved_components(const std::vector<int64_t>& sections);
/// Angles [T, pairs] as above, of pairs that turn with `components` [pairs], on the positions' device.
at::Tensor interleaved_angles(const at::Tensor& positions, const at::Tensor& components,
                              const at::Tensor& frequencies);

}  // namespace glimpse
