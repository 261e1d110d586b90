#pragma once

#include <optional>
#include <string>
#include <vector>

#include "glimpse/image/boxes.h"
#include "glimpse/io/row_box.h"

namespace glimpse {

/// The names of rules that answers are scored by (method.md section 6): llm, precision_match,
/// precision_match_or_llm, normal_match, vqa, anls, single_choice, one_box_iou (IoU above one half),
/// one_box_format (one box, wherever it is), box_iou (the IoU itself), command (a program of the user's).
const std::vector<std::string>& answer_score_names();

/// Whether answers of this score go to a judge.
bool needs_judge(const std::string& score);
/// Whether they go to the user's program (ScoreCommand).
bool needs_command(const std::string& score);

/// How the model sees the first image: what boxes in its answer refer to.
struct SeenImage {
  int width = 0, height = 0;               ///< of the picture, pixels
  double seen_width = 0, seen_height = 0;  ///< of what the encoder got of `area`, pixels
  Box area = whole_image;
};

/// What is right.
struct RightAnswer {
  std::vector<std::string> texts;  ///< of several people, or one
  std::vector<Box> boxes;
  std::string box_unit = "model";  ///< of boxes in answers, as Task::box_unit
};

/// The score of an answer's text in [0, 1]; nothing for one that only a judge or the user's program can
/// score.
std::optional<double> answer_score(const std::string& rule, const RightAnswer& right,
                                   const std::string& answer, const SeenImage& seen);

}  // namespace glimpse
