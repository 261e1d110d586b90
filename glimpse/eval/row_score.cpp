#include "glimpse/eval/row_score.h"

#include "glimpse/base/json_file.h"
#include "glimpse/eval/masks.h"

namespace glimpse {

using nlohmann::json;

const std::vector<std::string>& score_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all = answer_score_names();
    all.emplace_back("mask_iou");
    return all;
  }();
  return names;
}

std::optional<double> row_score(const Task& task, const TaskRow& row, const std::string& answer,
                                const SeenImage& seen) {
  return answer_score(task.score, {row.answers, row.boxes, task.box_unit}, answer, seen);
}

SeenImage seen_image(const json& line) {
  SeenImage seen;
  const json& images = member(line, "images");
  if (!images.is_array() || images.empty()) return seen;
  const json& first = images[0];
  const double side = line.value("token_pixels", 28.0);
  seen.width = first.at("size").at(0);
  seen.height = first.at("size").at(1);
  seen.seen_height = side * first.at("grid").at(0).get<double>();
  seen.seen_width = side * first.at("grid").at(1).get<double>();
  const json& area = first.at("area");
  seen.area = {area.at(0), area.at(1), area.at(2), area.at(3)};
  return seen;
}

std::optional<double> line_score(const Task& task, const TaskRow& row, const json& line) {
  if (task.score != "mask_iou") return row_score(task, row, line.at("answer"), seen_image(line));
  const auto masks = compared_masks(row, line);
  return masks ? mask_iou(*masks) : 0.0;
}

JudgeQuestion judge_question(const TaskRow& row, const std::string& answer) {
  std::string right;
  for (const std::string& each : row.answers) right += (right.empty() ? "" : " / ") + each;
  return {row.question, right, answer};
}

}  // namespace glimpse
