#pragma once

#include <functional>
#include <map>
#include <set>
#include <stop_token>

#include "glimpse/engine/engine.h"
#include "glimpse/eval/accounting.h"
#include "glimpse/eval/grid.h"
#include "glimpse/eval/shard.h"
#include "glimpse/io/file_lock.h"

namespace glimpse {

/// A task and those of its rows that are asked.
struct EvalTask {
  Task task;
  std::vector<TaskRow> rows;
};

/// What is to be answered, and the folder where answers go:
///   eval.json                        the settings that answers depend on, and what built the program
///   machine.json                     where they began to be made
///   answers/TASK/METHOD@BUDGET.rN.jsonl   what process N answered, one line a row
///   judged.jsonl                     what a judge said
///   results.json, table.csv, report.html  when all is answered
struct EvalPlan {
  std::vector<EvalTask> tasks;
  std::vector<GridCell> cells;
  std::filesystem::path out;
  Shard shard;
  ImageBounds bounds;
  VideoOptions video;
  std::optional<int64_t> max_new_tokens;  ///< instead of the tasks' own
  KeptCounts counts;                      ///< for cells with budget "from"
  bool keep_going = false;  ///< note rows that cannot be answered instead of ending with their Error
};

/// Where the answers to a task go.
std::filesystem::path answers_dir(const EvalPlan& plan, const EvalTask& task);

/// What a cell may keep of a row's images; empty: the method's own rule.
Budget budget_of(const EvalPlan& plan, const GridCell& cell, const TaskRow& row);
/// A budget of another run, as a line of answers says it.
nlohmann::json budget_json(const Budget& budget);

/// The answers to a task's rows in one way, by TaskRow::key(), of all processes so far.
using Answers = std::map<std::string, nlohmann::json>;
Answers read_answers(const EvalPlan& plan, const EvalTask& task, const GridCell& cell);

/// Whether a line says that the row had no answer for a reason that may pass: out of memory, a failing disk.
bool to_retry(const nlohmann::json& line);

/// How many answers there should be, and how many are still missing: of all processes, and of this one; with
/// `retry`, those that may be there at another try count as missing. Error for an answer that is there but
/// was asked for with another question, image, box or budget.
struct EvalProgress {
  size_t total = 0, missing = 0, mine = 0, mine_missing = 0;
};
EvalProgress progress_of(const EvalPlan& plan, bool retry = false);

/// What answers and times depend on.
struct EvalSettings {
  nlohmann::json all;
  std::set<std::string> aside;  ///< members that may change: where the model lies, the program's `commit`
};

/// Error when the plan's folder cannot be used for answers with these settings, unless `overwrite`: they were
/// made with others, or it is no folder of an evaluation. Changes nothing.
void check_folder(const EvalPlan& plan, const EvalSettings& settings, bool overwrite);

/// A process at work in the folder. With `overwrite` it is emptied first, which is an Error while others are.
class FolderClaim {
 public:
  /// Makes the folder, and stores the settings and what machine this is; the errors of check_folder().
  FolderClaim(const EvalPlan& plan, const EvalSettings& settings, bool overwrite);
  /// The commit whose answers are there, if it is another one; "" otherwise.
  const std::string& earlier_commit() const { return earlier_; }

 private:
  std::optional<FileLock> running_;
  std::string earlier_;
};

/// Answers this process's missing rows, every way of answering in turn row by row, so that a machine's moods
/// meet all of them, and each once before, untimed: the first answer pays for what is set up only once. Times
/// include everything a method does: only reading the file of the picture is left out. Memory is what an
/// answer takes beside all that was there before it. `step` is called after each answer. False when a stop
/// was requested.
bool answer_rows(const EvalPlan& plan, const Engine& engine, const Accounting& accounting,
                 const std::stop_token& stop, const std::function<void(const std::string& note)>& step);

}  // namespace glimpse
