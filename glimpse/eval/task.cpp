#include "glimpse/eval/task.h"

#include <algorithm>
#include <set>

#include "glimpse/engine/engine.h"
#include "glimpse/eval/row_score.h"
#include "glimpse/io/yaml.h"

namespace glimpse {
namespace fs = std::filesystem;

Fields Task::fields() {
  Fields fields;
  fields.add("name", name, "what the task is called in results")
      .add("format", format, "rows (JSON objects with a question) or conversations (Visual-CoT's benchmark)")
      .add("rows", rows, "file of rows, relative to the data root; {set} stands for each set's name")
      .add("images", images, "folder of the images, relative to the data root")
      .add("sets", sets, "names of the sets, if each has a file of its own")
      .add("score", score, "how an answer is scored")
      .add("suffix", suffix, "added to every question")
      .add("strip", strip, "texts that are cut out of every question, and white space around it")
      .add("box_unit", box_unit, "of boxes in answers: model, image or unit")
      .add("box_format", box_format, "of boxes in rows: xyxy or xywh")
      .add("max_new_tokens", max_new_tokens, "longest answer", {1, 1e6})
      .add("id", id, "member of a row: its id")
      .add("set", set, "member of a row: the set it belongs to")
      .add("question", question, "member of a row: the question")
      .add("options", options, "member of a row: a list of options, lettered below the question")
      .add("answer", answer, "member of a row: the right answer, or a list of them")
      .add("image", image, "member of a row: the image's name, or a list of them")
      .add("video", video, "member of a row: the video's name, or a list of them")
      .add("boxes", boxes, "member of a row: one box or a list of them");
  return fields;
}

nlohmann::json Task::to_json() const {
  nlohmann::json out = Task(*this).fields().to_json();
  if (video == Task().video) out.erase("video");
  return out;
}

Task Task::read(const fs::path& file) {
  Task task;
  task.name = file.stem().string();
  const nlohmann::json given = read_yaml(file);
  check(given.is_object(), file.string(), ": expected a mapping of settings");
  const std::string owner = file.string();
  task.fields().from_json(given, owner);
  const auto one_of = [&](const char* what, const std::string& value, const std::vector<std::string>& known) {
    if (std::find(known.begin(), known.end(), value) != known.end()) return;
    std::string all;
    for (const std::string& each : known) all += (all.empty() ? "" : ", ") + each;
    fail(owner, ": ", what, ": expected one of ", all, ", got '", value, "'");
  };
  one_of("format", task.format, {"rows", "conversations"});
  one_of("score", task.score, score_names());
  one_of("box_unit", task.box_unit, {"model", "image", "unit"});
  one_of("box_format", task.box_format, {"xyxy", "xywh"});
  check(!task.rows.empty(), owner, ": rows: the file of rows is not named");
  check(!task.name.empty() && task.name.find_first_of("/\\\n") == std::string::npos && task.name[0] != '.',
        owner, ": name: '", task.name, "' cannot be a folder's name");
  check(task.sets.empty() == (task.rows.find("{set}") == std::string::npos), owner,
        ": sets and {set} in rows go together");
  return task;
}

fs::path task_dir() {
  return (builtin_model_dir() / ".." / ".." / "eval").lexically_normal();
}

fs::path find_task(const std::string& given) {
  std::error_code ignored;
  if (fs::is_regular_file(given, ignored)) return given;
  const fs::path dir = task_dir(), own = dir / (given + ".yaml");
  if (given.find('/') == std::string::npos && fs::is_regular_file(own, ignored)) return own;
  std::set<std::string> known;
  if (fs::is_directory(dir, ignored))
    for (const auto& entry : fs::directory_iterator(dir, ignored))
      if (entry.path().extension() == ".yaml") known.insert(entry.path().stem().string());
  std::string names;
  for (const std::string& name : known) names += (names.empty() ? "" : ", ") + name;
  fail("task '", given, "': no such file, and no task of that name (known: ", names, ")");
}

}  // namespace glimpse
