#pragma once

#include "glimpse/eval/evaluation.h"

namespace glimpse {

/// Tokens of one image, row by row: 0 or 1.
struct TokenMask {
  int rows = 0, cols = 0;
  std::vector<uint8_t> tokens;
};

/// What an answer kept of its image number `image`.
TokenMask kept_mask(const nlohmann::json& line, size_t image);

/// The tokens that the row's boxes touch in the answer's first image; nothing where there is no box or image.
std::optional<TokenMask> boxed_mask(const TaskRow& row, const nlohmann::json& line);

/// Intersection over union; 0 for masks that are both empty.
double mask_iou(const TokenMask& a, const TokenMask& b);

/// Writes what every way of answering kept as pictures with a pixel per token, kept ones white:
/// DIR/TASK/METHOD@BUDGET/SET/ID.png, further images ID+2.png, .... Letters other than ASCII's and signs
/// other than _ and - are written as %XX. Error naming a file that cannot be written.
void write_masks(const EvalPlan& plan, const std::filesystem::path& dir);

}  // namespace glimpse
