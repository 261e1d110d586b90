#include "glimpse/eval/evaluation.h"

#include <algorithm>
#include <set>

#include "glimpse/base/atomic_file.h"
#include "glimpse/base/json_file.h"
#include "glimpse/base/timer.h"
#include "glimpse/eval/line_file.h"
#include "glimpse/eval/machine.h"
#include "glimpse/eval/row_score.h"
#include "glimpse/image/decode.h"

namespace glimpse {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

fs::path answers_dir(const EvalPlan& plan, const EvalTask& task) {
  return plan.out / "answers" / task.task.name;
}

// The files of a cell, one of each process that ever worked on it.
std::vector<fs::path> answer_files(const EvalPlan& plan, const EvalTask& task, const GridCell& cell) {
  std::vector<fs::path> files;
  const fs::path dir = answers_dir(plan, task);
  const std::string start = cell.label() + ".r";
  std::error_code ignored;
  if (!fs::is_directory(dir, ignored)) return files;
  for (const auto& entry : fs::directory_iterator(dir)) {
    const std::string name = entry.path().filename().string();
    const bool number = name.size() > start.size() + 6 &&
                        name.find_first_not_of("0123456789", start.size()) == name.size() - 6;
    if (name.starts_with(start) && name.ends_with(".jsonl") && number) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

double rounded(double value, double per_unit) {
  return std::round(value * per_unit) / per_unit;
}

json line_of(const TaskRow& row, const Request& request, const Answer& answer, const AnswerFlops& flops,
             double total_ms, double peak_mib) {
  const auto ms = [](double value) { return rounded(value, 1000); };
  const auto giga = [](double value) { return rounded(value / 1e9, 1e6); };
  json line = {
      {"id", row.id},
      {"set", row.set},
      {"answer", answer.text},
      {"finish_reason", answer.finish_reason},
      {"tokens", answer.ids.size()},
      {"prompt_tokens", answer.prompt_tokens},
      {"visual_tokens", answer.visual_tokens},
      {"kept_tokens", answer.kept_tokens},
      {"keep", answer.keep},
      {"times_ms",
       {{"vision", ms(answer.times.vision)},
        {"prefill", ms(answer.times.prefill)},
        {"prune", ms(answer.times.prune)},
        {"decode", ms(answer.times.decode)},
        {"total", ms(total_ms)}}},
      {"gflop",
       {{"prefill", giga(flops.prefill)}, {"prune", giga(flops.prune)}, {"decode", giga(flops.decode)}}},
      {"kv_bytes", answer.kv_bytes},
      {"peak_mib", rounded(peak_mib, 10)}};
  if (flops.vision) line["gflop"]["vision"] = giga(*flops.vision);
  json images = json::array();
  for (size_t i = 0; i < answer.images.size(); ++i) {
    const ImageSpan& span = answer.images[i];
    images.push_back({{"grid", {span.rows, span.cols}},
                      {"size", {request.images[i].width, request.images[i].height}},
                      {"area", {span.area.x1, span.area.y1, span.area.x2, span.area.y2}}});
  }
  line["images"] = images;
  return line;
}

// One task's cells, open for this process.
struct OpenCell {
  const GridCell* cell;
  PrunerChain pruners;
  std::set<std::string> done;
  std::unique_ptr<LineFile> file;
};

Request make_request(const EvalPlan& plan, const Task& task, const TaskRow& row) {
  check(row.problem.empty(), row.problem);
  Request request;
  Message message{"user", {}};
  for (const fs::path& path : row.images) {
    request.images.push_back(load_image(path));
    message.parts.push_back({Part::Kind::image, {}});
  }
  message.parts.push_back({Part::Kind::text, row.question});
  request.messages = {message};
  request.bounds = plan.bounds;
  request.max_new_tokens = plan.max_new_tokens.value_or(task.max_new_tokens);
  request.boxes.resize(row.images.size());
  if (!request.images.empty())
    for (const auto& box : row.boxes)
      request.boxes[0].push_back(
          normalise_box({box[0], box[1], box[2], box[3]}, request.images[0].width, request.images[0].height));
  return request;
}

json settings_difference(const json& a, const json& b) {
  json out = json::array();
  for (const auto& [key, value] : a.items())
    if (member(b, key.c_str()) != value) out.push_back(key);
  return out;
}

// As it is read back: paths and texts of the command line need not be UTF-8.
json stored(const json& settings) {
  return json::parse(settings.dump(-1, ' ', false, json::error_handler_t::replace));
}

class Answering {
 public:
  Answering(const EvalPlan& plan, const Engine& engine, const Accounting& accounting,
            const std::stop_token& stop, const std::function<void(const std::string&)>& step)
      : plan_(plan), engine_(engine), accounting_(accounting), stop_(stop), step_(step) {}

  // False when a stop was requested.
  bool run(const EvalTask& task) {
    std::vector<OpenCell> cells;
    fs::create_directories(answers_dir(plan_, task));
    for (const GridCell& cell : plan_.cells) {
      cells.push_back({&cell, make_pruners(cell.method, engine_.pruner_context()), {}, nullptr});
      for (const auto& [key, line] : read_answers(plan_, task, cell)) cells.back().done.insert(key);
      cells.back().file = std::make_unique<LineFile>(answers_dir(plan_, task) /
                                                     concat(cell.label(), ".r", plan_.shard.rank, ".jsonl"));
    }
    for (size_t i = 0; i < task.rows.size(); ++i) {
      const TaskRow& row = task.rows[i];
      if (!plan_.shard.mine(i)) continue;
      std::vector<OpenCell*> open;
      for (size_t c = 0; c < cells.size(); ++c)  // a different one first each time
        if (OpenCell& cell = cells[(c + i) % cells.size()]; !cell.done.contains(row.key()))
          open.push_back(&cell);
      if (!open.empty() && !answer(task.task, row, open)) return false;
    }
    return true;
  }

 private:
  bool answer(const Task& task, const TaskRow& row, const std::vector<OpenCell*>& open) {
    try {
      Request request = make_request(plan_, task, row);
      request.stop = stop_;
      if (!warm_) {
        // The first answer pays for what is set up only once.
        request.prune = "none";
        if (engine_.ask(request).finish_reason == "cancelled") return false;
        warm_ = true;
      }
      for (OpenCell* cell : open) {
        request.prune = cell->cell->method;
        request.budget = {};
        request.budget.keep = cell->cell->keep();
        if (cell->cell->budget == "from") request.budget.count = plan_.counts.of(row);
        reset_peak_resident();
        const Timer timer;
        const Answer answer = engine_.ask(request);
        const double ms = timer.ms();
        if (answer.finish_reason == "cancelled") return false;
        const AnswerFlops flops = accounting_.of(answer, cell->pruners, request.budget);
        json line = line_of(row, request, answer, flops, ms, peak_resident_mib());
        if (const auto side = accounting_.token_pixels()) line["token_pixels"] = *side;
        cell->file->write(line);
        step_(concat(cell->cell->label(), " kept ", answer.kept_tokens, "/", answer.visual_tokens));
      }
    } catch (const Error& error) {
      const std::string text = concat(row.place, ": ", error.what());
      check(plan_.keep_going, text);
      for (OpenCell* cell : open) {
        cell->file->write({{"id", row.id}, {"set", row.set}, {"problem", text}});
        step_(text);
      }
    }
    return true;
  }

  const EvalPlan& plan_;
  const Engine& engine_;
  const Accounting& accounting_;
  const std::stop_token& stop_;
  const std::function<void(const std::string&)>& step_;
  bool warm_ = false;
};

}  // namespace

Answers read_answers(const EvalPlan& plan, const EvalTask& task, const GridCell& cell) {
  Answers answers;
  for (const fs::path& file : answer_files(plan, task, cell))
    visit_whole_lines(file, [&](const json& line) {
      check(member(line, "id").is_primitive() && member(line, "set").is_string(), file.string(),
            ": is no file of answers");
      answers.emplace(json::array({line["set"], line["id"]}).dump(), line);
    });
  return answers;
}

EvalProgress progress_of(const EvalPlan& plan) {
  EvalProgress progress;
  for (const EvalTask& task : plan.tasks)
    for (const GridCell& cell : plan.cells) {
      const Answers answers = read_answers(plan, task, cell);
      for (size_t i = 0; i < task.rows.size(); ++i) {
        const bool mine = plan.shard.mine(i), missing = !answers.contains(task.rows[i].key());
        ++progress.total;
        progress.missing += missing;
        progress.mine += mine;
        progress.mine_missing += mine && missing;
      }
    }
  return progress;
}

void check_folder(const EvalPlan& plan, const json& settings, bool overwrite) {
  const fs::path file = plan.out / "eval.json";
  const std::string name = plan.out.string();
  std::error_code ignored;
  check(!fs::exists(plan.out, ignored) || fs::is_directory(plan.out, ignored), name,
        ": exists and is no folder");
  check(!overwrite || plan.shard.size == 1, "--overwrite is for one process; remove ", name, " yourself");
  if (fs::exists(file, ignored)) {
    if (overwrite) return;
    const json before = read_json(file), now = stored(settings);
    check(before == now, name, " was made with other settings (", file.string(), " differs in ",
          settings_difference(now, before).dump(), "); name another --out, or start again with --overwrite");
    return;
  }
  // A process that was killed, or has just begun, leaves the lock alone.
  const bool ours = fs::exists(plan.out / ".lock", ignored);
  check(ours || !fs::exists(plan.out, ignored) || fs::is_empty(plan.out), name,
        " holds something that is no evaluation; name another --out");
}

void claim_folder(const EvalPlan& plan, const json& settings, bool overwrite) {
  check_folder(plan, settings, overwrite);
  std::error_code error;
  fs::create_directories(plan.out, error);
  check(!error, plan.out.string(), ": cannot be made: ", error.message());
  const FolderLock lock(plan.out / ".lock");
  if (overwrite)
    for (const char* part :
         {"answers", "judged.jsonl", "results.json", "table.csv", "report.html", "machine.json", "eval.json"})
      fs::remove_all(plan.out / part);
  check_folder(plan, settings, overwrite);  // another process may have been faster
  for (const auto& [name, content] :
       {std::pair{"machine.json", machine_facts()}, {"eval.json", stored(settings)}}) {
    if (fs::exists(plan.out / name)) continue;
    AtomicFile out(plan.out / name);
    out.stream() << content.dump(2) << "\n";
    out.commit();
  }
}

bool answer_rows(const EvalPlan& plan, const Engine& engine, const Accounting& accounting,
                 const std::stop_token& stop, const std::function<void(const std::string&)>& step) {
  Answering answering(plan, engine, accounting, stop, step);
  return std::all_of(plan.tasks.begin(), plan.tasks.end(),
                     [&](const EvalTask& task) { return answering.run(task); });
}

SeenImage seen_image(const json& answer) {
  SeenImage seen;
  const json& images = member(answer, "images");
  if (!images.is_array() || images.empty()) return seen;
  const json& first = images[0];
  const double side = answer.value("token_pixels", 28.0);
  seen.width = first.at("size").at(0);
  seen.height = first.at("size").at(1);
  seen.seen_height = side * first.at("grid").at(0).get<double>();
  seen.seen_width = side * first.at("grid").at(1).get<double>();
  const json& area = first.at("area");
  seen.area = {area.at(0), area.at(1), area.at(2), area.at(3)};
  return seen;
}

}  // namespace glimpse
