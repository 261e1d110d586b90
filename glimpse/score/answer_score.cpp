#include "glimpse/score/answer_score.h"

#include <algorithm>

#include "glimpse/score/scores.h"

namespace glimpse {

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

double iou_of(const RightAnswer& right, const std::string& answer, const SeenImage& seen) {
  const std::vector<Box> boxes = boxes_in(answer);
  if (boxes.empty() || right.boxes.empty()) return 0;
  return box_iou(in_picture(boxes[0], right.box_unit, seen), right.boxes[0]);
}

}  // namespace

const std::vector<std::string>& answer_score_names() {
  static const std::vector<std::string> names = {
      "llm",           "precision_match", "precision_match_or_llm", "normal_match", "vqa",    "anls",
      "single_choice", "one_box_iou",     "one_box_format",         "box_iou",      "command"};
  return names;
}

bool needs_judge(const std::string& score) {
  return score == "llm" || score == "precision_match_or_llm";
}

bool needs_command(const std::string& score) {
  return score == "command";
}

std::optional<double> answer_score(const std::string& rule, const RightAnswer& right,
                                   const std::string& answer, const SeenImage& seen) {
  const auto any = [&](bool (*match)(std::string_view, std::string_view)) {
    const auto& texts = right.texts;
    const auto is_right = [&](const std::string& text) { return match(answer, text); };
    return std::any_of(texts.begin(), texts.end(), is_right) ? 1.0 : 0.0;
  };
  if (rule == "llm" || needs_command(rule)) return {};
  if (rule.starts_with("precision_match")) {
    const double exact = any(precision_match);
    return exact == 0 && rule != "precision_match" ? std::nullopt : std::optional(exact);
  }
  if (rule == "normal_match") return any(normal_match);
  if (rule == "single_choice") return any(single_choice);
  if (rule == "vqa") return vqa_accuracy(answer, right.texts);
  if (rule == "anls") return anls(answer, right.texts);
  if (rule == "one_box_format") return one_box_format(answer);
  const double iou = iou_of(right, answer, seen);
  return rule == "box_iou" ? iou : iou > 0.5 ? 1.0 : 0.0;
}

}  // namespace glimpse
