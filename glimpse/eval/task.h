#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "glimpse/base/options.h"
#include "glimpse/io/row_box.h"

namespace glimpse {

/// One question of a task.
struct TaskRow {
  nlohmann::json id;  ///< as written, else the row's index in its file; unique in its set
  std::string set, question;
  std::vector<std::string> answers;  ///< what counts as right; a single one unless several people answered
  std::vector<std::filesystem::path> images, videos;
  std::vector<Box> boxes;   ///< where the answer is seen: in the first image, else in the first video
  std::string place;        ///< file and row, for messages
  std::string problem;      ///< why it cannot be asked, or ""
  std::string fingerprint;  ///< of what is asked (io/run_identity.h)

  /// Names the row among all of its task.
  std::string key() const;
};

/// What is asked and how answers are scored, as a small YAML file says (eval/*.yaml; docs in the man page).
struct Task {
  std::string name;  ///< the file's name without its ending, unless it says another
  std::string format = "rows";
  std::string rows;          ///< file of rows, relative to the data root; {set} stands for each of `sets`
  std::string images = ".";  ///< folder of the images, relative to the data root
  std::vector<std::string> sets;  ///< none: the rows name their own
  std::string score = "normal_match";
  std::string suffix;              ///< added to every question
  std::vector<std::string> strip;  ///< texts that are cut out of every question, and white space around it
  std::string box_unit =
      "model";  ///< of boxes in answers: model, image (pixels) or unit (parts of the sides)
  std::string box_format = "xyxy";  ///< of boxes in rows: xyxy (two corners) or xywh (corner, width, height)
  int64_t max_new_tokens = 128;
  // Members of a row (format rows).
  std::string id = "id", set = "dataset", question = "question", options = "options", answer = "answer",
              image = "image", video = "video", boxes = "bboxs";

  Fields fields();
  /// For the record; without `video` where it is the usual one, as older records are.
  nlohmann::json to_json() const;

  /// Reads a task file. Errors name it and what is wrong.
  static Task read(const std::filesystem::path& file);
};

/// Where a task's files are and which of its rows are asked.
struct TaskSource {
  std::filesystem::path root;     ///< of `rows` and `images`
  std::filesystem::path images;   ///< folder of the images, or empty: the task's own
  std::vector<std::string> sets;  ///< only these; empty: all
  size_t limit = 0;               ///< at most so many rows of each set, evenly spaced; 0: all
  bool keep_going = false;        ///< a row that is wrong has a `problem` and is no Error
};

/// The rows of a task in the order of its sets and files. Errors name the file and the row: no such set, a
/// member that is missing or of another kind, an id that occurs twice. An image that is not there is the
/// row's `problem`.
std::vector<TaskRow> read_task_rows(const Task& task, const TaskSource& source);

/// `file_or_name` if it is a file, else eval/NAME.yaml of the program's own tasks. Error listing those.
std::filesystem::path find_task(const std::string& file_or_name);
/// Folder of the program's own tasks.
std::filesystem::path task_dir();

}  // namespace glimpse
