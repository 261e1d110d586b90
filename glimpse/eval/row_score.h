#pragma once

#include <optional>
#include <string>
#include <vector>

#include "glimpse/eval/task.h"
#include "glimpse/score/answer_score.h"
#include "glimpse/score/judge.h"

namespace glimpse {

/// What a task's `score` can be: answer_score_names(), and mask_iou (of the kept tokens and those in the
/// boxes, whatever the answer).
const std::vector<std::string>& score_names();

/// As a line of answers says of its first image, or of the frames of its first video.
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
