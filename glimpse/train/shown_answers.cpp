#include "glimpse/train/shown_answers.h"

#include <optional>

#include "glimpse/base/atomic_file.h"
#include "glimpse/base/chart.h"
#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"
#include "glimpse/base/web_text.h"

namespace glimpse {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

fs::path file_of(const fs::path& run_dir, Shown when) {
  return run_dir / "answers" / (when == Shown::before ? "before.json" : "after.json");
}

// A row as it is trained on; nothing for one that would be left out there.
std::optional<LoadedRow> usable(const Trainable& trained, const Vlm& model, const TrainRow& row,
                                const MediaOptions& media) {
  try {
    LoadedRow loaded = load_row(model, row, media);
    trained.check_example(loaded.example);
    return loaded;
  } catch (const Error&) {
    return std::nullopt;
  }
}

json read_answers(const fs::path& file) {
  json all = fs::exists(file) ? read_json(file) : json::array();
  check(all.is_array(), file.string(), ": expected a list of answers");
  return all;
}

std::string text_of(const json& answer, const char* key) {
  const json& value = member(answer, key);
  return value.is_string() ? escape_html(value.get<std::string>()) : "";
}

std::string answer_cell(const json& answer) {
  const json& score = member(answer, "score");
  return concat("<td>", text_of(answer, "answer"),
                score.is_number() ? concat(" <b>", short_number(score.get<double>()), "</b>") : "", "</td>");
}

}  // namespace

void write_answers(const fs::path& run_dir, Shown when, Trainable& trained, const Vlm& model,
                   const std::vector<TrainRow>& rows, const MediaOptions& media) {
  json all = json::array();
  for (const TrainRow& row : rows) {
    const auto loaded = usable(trained, model, row, media);
    if (!loaded) continue;
    const auto answer = trained.answer(loaded->example);
    if (!answer) return;
    all.push_back({{"question", row.question}, {"right", row.answer}, {"answer", answer->text}});
    if (answer->score) all.back()["score"] = *answer->score;
  }
  if (all.empty()) return;
  const fs::path path = file_of(run_dir, when);
  fs::create_directories(path.parent_path());
  AtomicFile file(path);
  file.stream() << json_text(all) << "\n";
  file.commit();
}

std::string answers_table(const fs::path& run_dir) {
  const json before = read_answers(file_of(run_dir, Shown::before)),
             after = read_answers(file_of(run_dir, Shown::after));
  std::string rows;
  for (size_t i = 0; i < std::min(before.size(), after.size()); ++i)
    rows += concat("<tr><td>", text_of(before[i], "question"), "</td><td>", text_of(before[i], "right"),
                   "</td>", answer_cell(before[i]), answer_cell(after[i]), "</tr>\n");
  if (rows.empty()) return "";
  return concat(
      "<div class='card "
      "scroll'><table><tr><th>question</th><th>right</th><th>before</th><th>after</th></tr>\n",
      rows, "</table></div>\n");
}

}  // namespace glimpse
