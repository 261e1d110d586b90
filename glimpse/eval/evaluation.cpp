#include "glimpse/eval/evaluation.h"

#include "glimpse/base/atomic_file.h"
#include "glimpse/base/json_file.h"
#include "glimpse/eval/machine.h"
#include "glimpse/io/line_file.h"
#include "glimpse/io/run_identity.h"

namespace glimpse {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// An answer that is there must be one to what would be asked now.
void check_asked(const EvalPlan& plan, const GridCell& cell, const TaskRow& row, const json& line) {
  const bool same = member(line, "row") == row.fingerprint;
  const bool counted = same && cell.budget == "from" && !line.contains("problem");
  check(same && (!counted || member(line, "budget") == budget_json(budget_of(plan, cell, row))),
        plan.out.string(), " has an answer of ", cell.label(), " to ", row.place, ", asked with another ",
        same ? "budget" : "question, image or box",
        " than now; name another --out, or start again with --overwrite");
}

}  // namespace

fs::path answers_dir(const EvalPlan& plan, const EvalTask& task) {
  return plan.out / "answers" / task.task.name;
}

Budget budget_of(const EvalPlan& plan, const GridCell& cell, const TaskRow& row) {
  if (cell.budget == "from") return plan.counts.of(row.set, row.id);
  return parse_budget(cell.budget).value_or(Budget());
}

json budget_json(const Budget& budget) {
  return budget.count ? json(*budget.count) : json(budget.counts);
}

Answers read_answers(const EvalPlan& plan, const EvalTask& task, const GridCell& cell) {
  Answers answers;
  for (const fs::path& file : answer_files(answers_dir(plan, task), cell.label()))
    visit_whole_lines(file, [&](const json& line) {
      check(member(line, "id").is_primitive() && member(line, "set").is_string(), file.string(),
            ": is no file of answers");
      json& known = answers[json::array({line["set"], line["id"]}).dump()];
      if (known.is_null() || known.contains("problem")) known = line;
    });
  return answers;
}

bool to_retry(const json& line) {
  return member(line, "retry") == true;
}

EvalProgress progress_of(const EvalPlan& plan, bool retry) {
  EvalProgress progress;
  for (const EvalTask& task : plan.tasks)
    for (const GridCell& cell : plan.cells) {
      const Answers answers = read_answers(plan, task, cell);
      for (size_t i = 0; i < task.rows.size(); ++i) {
        const auto found = answers.find(task.rows[i].key());
        const bool there = found != answers.end(), mine = plan.shard.mine(i),
                   missing = !there || (retry && to_retry(found->second));
        if (there) check_asked(plan, cell, task.rows[i], found->second);
        ++progress.total;
        progress.missing += missing;
        progress.mine += mine;
        progress.mine_missing += mine && missing;
      }
    }
  return progress;
}

void check_folder(const EvalPlan& plan, const EvalSettings& settings, bool overwrite) {
  const fs::path file = plan.out / "eval.json";
  const std::string name = plan.out.string();
  std::error_code ignored;
  check(!fs::exists(plan.out, ignored) || fs::is_directory(plan.out, ignored), name,
        ": exists and is no folder");
  check(!overwrite || plan.shard.size == 1, "--overwrite is for one process; remove ", name, " yourself");
  if (fs::exists(file, ignored)) {
    if (overwrite) return;
    const std::string other = differences(read_json(file), stored(settings.all), settings.aside);
    check(other.empty(), name, " was made with other settings (", file.string(), ": ", other,
          "); name another --out, or start again with --overwrite");
    return;
  }
  // A process that was killed, or has just begun, leaves the locks alone.
  const bool ours = fs::exists(plan.out / ".lock", ignored);
  check(ours || !fs::exists(plan.out, ignored) || fs::is_empty(plan.out), name,
        " holds something that is no evaluation; name another --out");
}

FolderClaim::FolderClaim(const EvalPlan& plan, const EvalSettings& settings, bool overwrite) {
  check_folder(plan, settings, overwrite);
  std::error_code error;
  fs::create_directories(plan.out, error);
  check(!error, plan.out.string(), ": cannot be made: ", error.message());
  const FileLock lock(plan.out / ".lock", LockKind::exclusive_wait);
  if (overwrite) {
    const FileLock alone(plan.out / ".running", LockKind::exclusive);
    for (const char* part :
         {"answers", "judged.jsonl", "results.json", "table.csv", "report.html", "machine.json", "eval.json"})
      fs::remove_all(plan.out / part);
  }
  running_.emplace(plan.out / ".running", LockKind::shared);
  check_folder(plan, settings, overwrite);  // another process may have been faster
  const auto write = [&](const char* name, const json& content) {
    AtomicFile out(plan.out / name);
    out.stream() << content.dump(2) << "\n";
    out.commit();
  };
  if (!fs::exists(plan.out / "machine.json")) write("machine.json", machine_facts());
  json now = stored(settings.all);
  if (fs::exists(plan.out / "eval.json")) {
    const json before = read_json(plan.out / "eval.json");
    if (member(before, "commit") == member(now, "commit")) return;
    earlier_ = before.value("commit", "an unknown build");
    now["earlier_commits"] = before.value("earlier_commits", json::array());
    now["earlier_commits"].push_back(earlier_);
  }
  write("eval.json", now);
}

}  // namespace glimpse
