#pragma once

#include "glimpse/eval/evaluation.h"

namespace glimpse {

/// Tokens of one grid, row by row: 0 or 1.
struct TokenMask {
  int rows = 0, cols = 0;
  std::vector<uint8_t> tokens;
};

/// What an answer kept of its grid number `grid`, of an image or of a slice of a video.
TokenMask kept_mask(const nlohmann::json& line, size_t grid);

/// The tokens of an answer's first image, or of all slices of its first video: whether they were kept, and
/// whether the row's boxes touch them, in a video those that are there at the time.
struct ComparedMasks {
  std::vector<uint8_t> kept, boxed;
};
/// Nothing where there is no box, image or video.
std::optional<ComparedMasks> compared_masks(const TaskRow& row, const nlohmann::json& line);

/// Intersection over union; 0 for masks that are both empty.
double mask_iou(const ComparedMasks& masks);

/// Writes what every way of answering kept as pictures with a pixel per token, kept ones white:
/// DIR/TASK/METHOD@BUDGET/SET/ID.png, further images or slices of a video ID+2.png, .... Letters other than
/// ASCII's and signs other than _ and - are written as %XX. Error naming a file that cannot be written.
void write_masks(const EvalPlan& plan, const std::filesystem::path& dir);

}  // namespace glimpse
