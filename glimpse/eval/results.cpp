#include "glimpse/eval/results.h"

#include <cmath>
#include <iomanip>
#include <set>

#include "glimpse/base/json_file.h"
#include "glimpse/eval/row_score.h"
#include "glimpse/train/mask_score.h"

namespace glimpse {

namespace {

using nlohmann::json;

struct Mean {
  double sum = 0, squares = 0;
  int64_t count = 0;

  void add(double value) {
    sum += value;
    squares += value * value;
    ++count;
  }
  double value() const { return count ? sum / static_cast<double>(count) : 0; }
  double error() const {
    if (count < 2) return 0;
    const double n = static_cast<double>(count), variance = (squares - sum * sum / n) / (n - 1);
    return std::sqrt(std::max(0.0, variance) / n);
  }
};

double round_to(double value, int digits) {
  const double unit = std::pow(10, digits);
  return std::isfinite(value) ? std::round(value * unit) / unit : value;
}

json number_or_null(double value, int digits) {
  return std::isfinite(value) ? json(round_to(value, digits)) : json();
}

// What is summed up over some rows.
struct Sums {
  Mean score, kept, tokens, kv_bytes;
  std::map<std::string, Mean> times, gflop;
  MaskScore mask;
  double peak_mib = 0;

  void add(const TaskRow& row, const json& line, double row_score) {
    const double visual = line.at("visual_tokens"), left = line.at("kept_tokens");
    score.add(row_score);
    if (visual > 0) kept.add(left / visual);
    tokens.add(line.at("tokens"));
    kv_bytes.add(line.at("kv_bytes"));
    peak_mib = std::max(peak_mib, line.at("peak_mib").get<double>());
    for (const auto& [name, value] : line.at("times_ms").items()) times[name].add(value);
    double all = 0;
    for (const auto& [name, value] : line.at("gflop").items()) {
      gflop[name].add(value);
      all += value.get<double>();
    }
    gflop["total"].add(all);
    add_mask(row, line);
  }

  json to_json() const {
    json out = {{"rows", score.count},
                {"score", round_to(score.value(), 5)},
                {"score_error", round_to(score.error(), 5)},
                {"kept", round_to(kept.value(), 5)},
                {"tokens", round_to(tokens.value(), 2)},
                {"kv_mib", round_to(kv_bytes.value() / 1048576, 5)},
                {"peak_mib", round_to(peak_mib, 1)},
                {"mask", nullptr}};
    for (const auto& [name, mean] : times) out["times_ms"][name] = round_to(mean.value(), 3);
    for (const auto& [name, mean] : gflop) out["gflop"][name] = round_to(mean.value(), 5);
    if (mask.samples() > 0)
      out["mask"] = {{"precision", number_or_null(mask.precision(), 5)},
                     {"recall", number_or_null(mask.recall(), 5)},
                     {"f1", number_or_null(mask.f1(), 5)},
                     {"iou", number_or_null(mask.iou(), 5)}};
    return out;
  }

 private:
  void add_mask(const TaskRow& row, const json& line) {
    const json& images = line.at("images");
    if (row.boxes.empty() || images.empty()) return;
    const SeenImage seen = seen_image(line);
    const int rows = images[0].at("grid").at(0), cols = images[0].at("grid").at(1);
    std::vector<Box> boxes;
    for (const auto& box : row.boxes)
      boxes.push_back(normalise_box({box[0], box[1], box[2], box[3]}, seen.width, seen.height));
    const std::vector<uint8_t> reference = boxes_to_mask(boxes, rows, cols, seen.area);
    std::vector<uint8_t> own(reference.size());
    for (const int64_t token : line.at("keep").at(0).get<std::vector<int64_t>>()) own.at(token) = 1;
    mask.add(own, reference);
  }
};

bool is_problem(const json& line) {
  return line.contains("problem");
}

// Rows that some way of answering could not answer.
std::set<std::string> problems_of(const EvalTask& task, const std::vector<Answers>& all) {
  std::set<std::string> out;
  for (const TaskRow& row : task.rows)
    for (const Answers& answers : all)
      if (is_problem(answers.at(row.key()))) out.insert(row.key());
  return out;
}

std::vector<Answers> answers_of(const EvalPlan& plan, const EvalTask& task) {
  std::vector<Answers> all;
  for (const GridCell& cell : plan.cells) all.push_back(read_answers(plan, task, cell));
  return all;
}

// What the judge has to be asked about a cell's answers.
std::vector<JudgeQuestion> open_questions(const EvalTask& task, const Answers& answers) {
  std::vector<JudgeQuestion> out;
  for (const TaskRow& row : task.rows)
    if (const json& line = answers.at(row.key()); !is_problem(line)) {
      const std::string text = line.at("answer");
      if (!row_score(task.task, row, text, seen_image(line))) out.push_back(judge_question(row, text));
    }
  return out;
}

json cell_of(const EvalTask& task, const GridCell& cell, const Answers& answers,
             const std::set<std::string>& left_out, const std::vector<double>& judged) {
  std::map<std::string, Sums> sets;
  std::vector<std::string> order;
  Sums all;
  size_t next = 0;
  for (const TaskRow& row : task.rows) {
    const json& line = answers.at(row.key());
    if (is_problem(line)) continue;
    auto score = row_score(task.task, row, line.at("answer"), seen_image(line));
    if (!score) score = judged.at(next++);
    if (left_out.contains(row.key())) continue;
    if (!sets.contains(row.set)) order.push_back(row.set);
    sets[row.set].add(row, line, *score);
    all.add(row, line, *score);
  }
  json out = {{"task", task.task.name}, {"method", cell.method}, {"budget", cell.budget}};
  Mean average;
  out["sets"] = json::object();
  for (const std::string& set : order) {
    average.add(sets[set].score.value());
    out["sets"][set] = sets[set].to_json();
  }
  out["average"] = round_to(average.value(), 5);
  out["all"] = all.to_json();
  return out;
}

}  // namespace

size_t unjudged(const EvalPlan& plan, const Judge& judge) {
  std::vector<JudgeQuestion> questions;
  for (const EvalTask& task : plan.tasks)
    if (needs_judge(task.task.score))
      for (const Answers& answers : answers_of(plan, task))
        for (JudgeQuestion& question : open_questions(task, answers))
          questions.push_back(std::move(question));
  return judge.unknown(questions);
}

json make_results(const EvalPlan& plan, Judge* judge, const std::stop_token& stop,
                  const std::function<void()>& judged) {
  json results = {{"tasks", json::array()}, {"cells", json::array()}};
  for (const EvalTask& task : plan.tasks) {
    const std::vector<Answers> all = answers_of(plan, task);
    const std::set<std::string> left_out = problems_of(task, all);
    check(left_out.size() < task.rows.size(), "task ", task.task.name, ": no row could be answered");
    for (size_t i = 0; i < plan.cells.size(); ++i) {
      std::vector<double> scores;
      if (needs_judge(task.task.score)) {
        invariant(judge != nullptr, "a judged task has a judge");
        scores = judge->scores(open_questions(task, all[i]), stop, judged);
      }
      results["cells"].push_back(cell_of(task, plan.cells[i], all[i], left_out, scores));
    }
    json sets = json::array();
    for (const TaskRow& row : task.rows)
      if (std::find(sets.begin(), sets.end(), json(row.set)) == sets.end()) sets.push_back(row.set);
    results["tasks"].push_back({{"name", task.task.name},
                                {"score", task.task.score},
                                {"rows", task.rows.size()},
                                {"left_out", left_out.size()},
                                {"sets", sets}});
  }
  return results;
}

std::string results_csv(const json& results) {
  std::ostringstream out;
  out << "task,method,budget,set,rows,score,score_error,kept,precision,recall,f1,iou,vision_ms,prefill_ms,"
         "prune_ms,"
         "decode_ms,total_ms,vision_gflop,prefill_gflop,prune_gflop,decode_gflop,kv_mib,peak_mib\n";
  const auto quoted = [](const std::string& text) {
    return text.find(',') == text.npos ? text : concat('"', text, '"');
  };
  for (const json& cell : results.at("cells")) {
    const auto line = [&](const std::string& set, const json& sums) {
      const auto field = [&](const char* part, const char* name) {
        const json& value = member(member(sums, part), name);
        out << "," << (value.is_null() ? "" : value.dump());
      };
      out << quoted(cell.at("task")) << "," << quoted(cell.at("method")) << "," << quoted(cell.at("budget"))
          << "," << quoted(set);
      for (const char* name : {"rows", "score", "score_error", "kept"}) {
        const json& value = sums.at(name);
        out << "," << (value.is_null() ? "" : value.dump());
      }
      for (const char* name : {"precision", "recall", "f1", "iou"}) field("mask", name);
      for (const char* name : {"vision", "prefill", "prune", "decode", "total"}) field("times_ms", name);
      for (const char* name : {"vision", "prefill", "prune", "decode"}) field("gflop", name);
      out << "," << sums.at("kv_mib").dump() << "," << sums.at("peak_mib").dump() << "\n";
    };
    for (const auto& [set, sums] : cell.at("sets").items()) line(set, sums);
    json average = cell.at("all");
    average["score"] = cell.at("average");
    average["score_error"] = nullptr;
    line("average", average);
    line("all rows", cell.at("all"));
  }
  return out.str();
}

std::string results_table(const json& results) {
  std::ostringstream out;
  out << std::fixed;
  for (const json& task : results.at("tasks")) {
    size_t width = 6;
    for (const json& cell : results.at("cells"))
      width = std::max(width, cell.at("method").get<std::string>().size());
    out << task.at("name").get<std::string>() << ": " << task.at("rows") << " rows, score "
        << task.at("score").get<std::string>() << "\n"
        << std::left << std::setw(static_cast<int>(width)) << "method" << std::right
        << "  budget  kept %  average  all rows     F1   vision  prefill   prune   decode    total ms   "
           "GFLOP  KV MiB\n";
    for (const json& cell : results.at("cells")) {
      if (cell.at("task") != task.at("name")) continue;
      const json& all = cell.at("all");
      const auto number = [&](double value, int places, int space) {
        out << std::setw(space) << std::setprecision(places) << value;
      };
      const json& ms = all.at("times_ms");
      out << std::left << std::setw(static_cast<int>(width)) << cell.at("method").get<std::string>()
          << std::right << std::setw(8) << cell.at("budget").get<std::string>();
      number(100 * all.at("kept").get<double>(), 1, 8);
      number(cell.at("average"), 3, 9);
      number(all.at("score"), 3, 10);
      if (const json& f1 = member(all.at("mask"), "f1"); f1.is_number())
        number(f1, 3, 7);
      else
        out << "      -";
      number(ms.at("vision"), 1, 9);
      number(ms.at("prefill"), 1, 9);
      number(ms.at("prune"), 2, 8);
      number(ms.at("decode"), 1, 9);
      number(ms.at("total"), 1, 12);
      number(all.at("gflop").at("total"), 2, 8);
      number(all.at("kv_mib"), 3, 8);
      out << "\n";
    }
  }
  return out.str();
}

}  // namespace glimpse
