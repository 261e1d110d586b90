#include "glimpse/eval/row_score.h"

#include <algorithm>

#include "glimpse/base/json_file.h"
#include "glimpse/eval/masks.h"
#include "glimpse/eval/scores.h"

namespace glimpse {

using nlohmann::json;

namespace {

// A box of an answer in pixels of the picture.
Box in_picture(const Box& box, const std::string& unit, const SeenImage& seen) {
  if (unit == "image") return box;
  const double x_scale = unit == "unit" ? 1 : seen.seen_width,
               y_scale = unit == "unit" ? 1 : seen.seen_height;
  const Box& area = seen.area;
  const auto x = [&](double value) {
    return (area.x1 + value / std::max(x_scale, 1e-9) * (area.x2 - area.x1)) * seen.width;
  };
  const auto y = [&](double value) {
    return (area.y1 + value / std::max(y_scale, 1e-9) * (area.y2 - area.y1)) * seen.height;
  };
  return {x(box.x1), y(box.y1), x(box.x2), y(box.y2)};
}

double iou_of(const Task& task, const TaskRow& row, const std::string& answer, const SeenImage& seen) {
  const std::vector<Box> boxes = boxes_in(answer);
  if (boxes.empty() || row.boxes.empty()) return 0;
  const auto& right = row.boxes[0];
  return box_iou(in_picture(boxes[0], task.box_unit, seen), {right[0], right[1], right[2], right[3]});
}

template <class Match>
double any(const TaskRow& row, const Match& match) {
  return std::any_of(row.answers.begin(), row.answers.end(), match) ? 1.0 : 0.0;
}

}  // namespace

const std::vector<std::string>& score_names() {
  static const std::vector<std::string> names = {
      "llm",           "precision_match", "precision_match_or_llm", "normal_match", "vqa",     "anls",
      "single_choice", "one_box_iou",     "one_box_format",         "box_iou",      "mask_iou"};
  return names;
}

bool needs_judge(const std::string& score) {
  return score == "llm" || score == "precision_match_or_llm";
}

std::optional<double> row_score(const Task& task, const TaskRow& row, const std::string& answer,
                                const SeenImage& seen) {
  const std::string& rule = task.score;
  if (rule == "llm") return {};
  if (rule.starts_with("precision_match")) {
    const double exact = any(row, [&](const auto& right) { return precision_match(answer, right); });
    return exact == 0 && rule != "precision_match" ? std::nullopt : std::optional(exact);
  }
  if (rule == "normal_match") return any(row, [&](const auto& right) { return normal_match(answer, right); });
  if (rule == "single_choice")
    return any(row, [&](const auto& right) { return single_choice(answer, right); });
  if (rule == "vqa") return vqa_accuracy(answer, row.answers);
  if (rule == "anls") return anls(answer, row.answers);
  if (rule == "one_box_format") return one_box_format(answer);
  const double iou = iou_of(task, row, answer, seen);
  return rule == "box_iou" ? iou : iou > 0.5 ? 1.0 : 0.0;
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
  const auto boxed = boxed_mask(row, line);
  return boxed ? mask_iou(kept_mask(line, 0), *boxed) : 0.0;
}

JudgeQuestion judge_question(const TaskRow& row, const std::string& answer) {
  std::string right;
  for (const std::string& each : row.answers) right += (right.empty() ? "" : " / ") + each;
  return {row.question, right, answer};
}

}  // namespace glimpse
