#include "glimpse/train/row_scores.h"

#include <algorithm>
#include <cstdlib>

#include "glimpse/score/answer_score.h"

namespace glimpse {

namespace {

using nlohmann::json;

json line_of(const TrainRow& row, const std::string& answer) {
  json line = answer_line(row.id, row.question, row.answer, answer);
  line.update({{"dataset", row.dataset}, {row.video ? "video" : "image", row.image}, {"bboxs", row.boxes}});
  if (row.width > 0) line.update({{"width", row.width}, {"height", row.height}});
  return line;
}

}  // namespace

RowScores::RowScores(const TuneOptions& options, const std::filesystem::path& judged)
    : default_(options.scores) {
  if (!options.command.command.empty()) command_.emplace(options.command);
  if (options.judge.url.empty()) return;
  JudgeOptions asked = options.judge;
  if (const char* key = std::getenv(options.judge_key_env.c_str())) asked.key = key;
  check_judge(asked);
  std::filesystem::create_directories(judged.parent_path());
  judge_.emplace(asked, judged);
}

void RowScores::check_row(const TrainRow& row) const {
  for (const std::string& name : names(row)) {
    const auto& known = answer_score_names();
    check(std::ranges::count(known, name) > 0, "its score '", name, "' is unknown");
    check(!needs_judge(name) || judge_, "its score ", name,
          " asks a judge: name a server with --judge-url and --judge-model");
    check(!needs_command(name) || command_, "its score ", name,
          " asks a program: name it with --score-command");
  }
}

std::vector<double> RowScores::of(const Example& example, const std::vector<std::string>& answers) {
  const TrainRow& row = *example.row;
  const RightAnswer right{{row.answer}, row.boxes};
  std::vector<double> scores(answers.size(), 0.0);
  std::vector<JudgeQuestion> questions;
  std::vector<json> lines;
  std::vector<size_t> judged, commanded;
  for (size_t i = 0; i < answers.size(); ++i)
    for (const std::string& name : names(row)) {
      if (const auto known = answer_score(name, right, answers[i], example.seen)) {
        scores[i] += *known;
      } else if (needs_command(name)) {
        lines.push_back(line_of(row, answers[i]));
        commanded.push_back(i);
      } else {
        questions.push_back({row.question, row.answer, answers[i]});
        judged.push_back(i);
      }
    }
  if (!questions.empty()) {
    const auto replies = judge_->scores(questions, {}, [] {});
    for (size_t i = 0; i < judged.size(); ++i) scores[judged[i]] += replies[i].value_or(0.0);
  }
  if (!lines.empty()) {
    const auto replies = command_->scores(lines);
    for (size_t i = 0; i < commanded.size(); ++i) scores[commanded[i]] += replies[i];
  }
  return scores;
}

}  // namespace glimpse
