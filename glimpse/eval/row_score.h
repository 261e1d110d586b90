#pragma once

#include <optional>
#include <string>
#include <vector>

#include "glimpse/eval/judge.h"
#include "glimpse/eval/task.h"
#include "glimpse/image/boxes.h"

namespace glimpse {

/// The names a task's `score` can have: llm, precision_match, precision_match_or_llm, normal_match, vqa,
/// anls, single_choice, one_box_iou (IoU above one half), one_box_format (one box, wherever it is), box_iou
/// (the IoU itself), mask_iou (of the kept tokens and those in the boxes, whatever the answer).
const std::vector<std::string>& score_names();

/// Whether answers of this score go to a judge.
bool needs_judge(const std::string& score);

/// How the model sees the first image: what boxes in its answer refer to.
struct SeenImage {
  int width = 0, height = 0;               ///< of the picture, pixels
  double seen_width = 0, seen_height = 0;  ///< of what the encoder got of `area`, pixels
  Box area = whole_image;
};

/// As a line of answers says.
SeenImage seen_image(const nlohmann::json& line);

/// The score of an answer's text in [0, 1] by the task's own rule; nothing for one that only a judge can
/// score. Not for mask_iou.
std::optional<double> row_score(const Task& task, const TaskRow& row, const std::string& answer,
                                const SeenImage& seen);
/// The same for a line of answers, by any rule.
std::optional<double> line_score(const Task& task, const TaskRow& row, const nlohmann::json& line);

/// What the judge is asked about an answer.
JudgeQuestion judge_question(const TaskRow& row, const std::string& answer);

}  // namespace glimpse
