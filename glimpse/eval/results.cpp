#include "glimpse/eval/results.h"

#include <cmath>
#include <iomanip>
#include <set>

#include "glimpse/base/json_file.h"
#include "glimpse/eval/masks.h"
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
  std::optional<double> peak_mib = 0;  // nothing if one was not measured

  void add(const TaskRow& row, const json& line, double row_score) {
    const double visual = line.at("visual_tokens"), left = line.at("kept_tokens");
    score.add(row_score);
    if (visual > 0) kept.add(left / visual);
    tokens.add(line.at("tokens"));
    kv_bytes.add(line.at("kv_bytes"));
    if (const json& peak = line.at("peak_mib"); peak.is_null())
      peak_mib.reset();
    else if (peak_mib)
      peak_mib = std::max(*peak_mib, peak.get<double>());
    for (const auto& [name, value] : line.at("times_ms").items()) times[name].add(value);
    double all = 0;
    for (const auto& [name, value] : line.at("gflop").items()) {
      gflop[name].add(value);
      all += value.get<double>();
    }
    gflop["total"].add(all);
    if (const auto masks = compared_masks(row, line)) mask.add(masks->kept, masks->boxed);
  }

  json to_json() const {
    json out = {{"rows", score.count},
                {"score", round_to(score.value(), 5)},
                {"score_error", round_to(score.error(), 5)},
                {"kept", round_to(kept.value(), 5)},
                {"tokens", round_to(tokens.value(), 2)},
                {"kv_mib", round_to(kv_bytes.value() / 1048576, 5)},
                {"peak_mib", peak_mib ? json(round_to(*peak_mib, 1)) : json()},
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

// The rows that a cell answers, with their answers.
void each_answered(const EvalTask& task, const Answers& answers,
                   const std::function<void(const TaskRow& row, const json& line)>& take) {
  for (const TaskRow& row : task.rows)
    if (const json& line = answers.at(row.key()); !is_problem(line)) take(row, line);
}

// What the judge has to be asked about a cell's answers.
std::vector<JudgeQuestion> open_questions(const EvalTask& task, const Answers& answers) {
  std::vector<JudgeQuestion> out;
  each_answered(task, answers, [&](const TaskRow& row, const json& line) {
    if (!line_score(task.task, row, line)) out.push_back(judge_question(row, line.at("answer")));
  });
  return out;
}

// The same for a program of the user's.
std::vector<json> answer_lines(const EvalTask& task, const Answers& answers) {
  std::vector<json> out;
  each_answered(task, answers, [&](const TaskRow& row, const json& line) {
    const JudgeQuestion asked = judge_question(row, line.at("answer"));
    out.push_back(answer_line(row.id, asked.question, asked.right, asked.answer));
    out.back().update({{"dataset", row.set}, {"answers", row.answers}, {"bboxs", row.boxes}});
  });
  return out;
}

json cell_of(const EvalTask& task, const GridCell& cell, const Answers& answers,
             const std::set<std::string>& left_out, const std::vector<std::optional<double>>& judged) {
  std::map<std::string, Sums> sets;
  std::vector<std::string> order;
  Sums all;
  json pruning;
  size_t next = 0, unparsed = 0;
  each_answered(task, answers, [&](const TaskRow& row, const json& line) {
    auto score = line_score(task.task, row, line);
    const bool asked = !score;
    if (asked) score = judged.at(next++);
    if (left_out.contains(row.key())) return;
    if (asked && !score) ++unparsed;
    if (!sets.contains(row.set)) order.push_back(row.set);
    sets[row.set].add(row, line, score.value_or(0));
    all.add(row, line, score.value_or(0));
    pruning = line.at("pruning");
  });
  json out = {
      {"task", task.task.name}, {"method", cell.method}, {"budget", cell.budget}, {"pruning", pruning}};
  if (needs_judge(task.task.score)) out["unparsed"] = unparsed;
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

json make_results(const EvalPlan& plan, const Scorers& scorers, const std::stop_token& stop,
                  const std::function<void()>& judged) {
  json results = {{"tasks", json::array()}, {"cells", json::array()}};
  for (const EvalTask& task : plan.tasks) {
    const std::vector<Answers> all = answers_of(plan, task);
    const std::set<std::string> left_out = problems_of(task, all);
    check(left_out.size() < task.rows.size(), "task ", task.task.name, ": no row could be answered");
    for (size_t i = 0; i < plan.cells.size(); ++i) {
      std::vector<std::optional<double>> scores;
      if (needs_judge(task.task.score)) {
        invariant(scorers.judge != nullptr, "a judged task has a judge");
        scores = scorers.judge->scores(open_questions(task, all[i]), stop, judged);
      } else if (needs_command(task.task.score)) {
        invariant(scorers.command != nullptr, "a task that a program scores has one");
        for (const double score : scorers.command->scores(answer_lines(task, all[i])))
          scores.emplace_back(score);
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

std::string fixed(const json& value, int places) {
  if (!value.is_number()) return "-";
  std::ostringstream out;
  out << std::fixed << std::setprecision(places) << value.get<double>();
  return out.str();
}

std::string results_csv(const json& results) {
  std::ostringstream out;
  out << "task,method,budget,set,rows,score,score_error,kept,precision,recall,f1,iou,vision_ms,prefill_ms,"
         "prune_ms,"
         "decode_ms,total_ms,vision_gflop,prefill_gflop,prune_gflop,decode_gflop,kv_mib,peak_mib\n";
  const auto quoted = [](std::string text) {
    if (text.find_first_of(",\"\r\n") == text.npos) return text;
    for (size_t at = 0; (at = text.find('"', at)) != text.npos; at += 2) text.insert(at, 1, '"');
    return '"' + text + '"';
  };
  for (const json& cell : results.at("cells")) {
    const auto line = [&](const std::string& set, const json& sums) {
      const auto field = [&](const json& value) { out << "," << (value.is_null() ? "" : value.dump()); };
      out << quoted(cell.at("task")) << "," << quoted(cell.at("method")) << "," << quoted(cell.at("budget"))
          << "," << quoted(set);
      for (const char* name : {"rows", "score", "score_error", "kept"}) field(sums.at(name));
      for (const char* name : {"precision", "recall", "f1", "iou"}) field(member(sums.at("mask"), name));
      for (const char* name : {"vision", "prefill", "prune", "decode", "total"})
        field(sums.at("times_ms").at(name));
      for (const char* name : {"vision", "prefill", "prune", "decode"}) field(member(sums.at("gflop"), name));
      for (const char* name : {"kv_mib", "peak_mib"}) field(sums.at(name));
      out << "\n";
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

namespace {

// A table for a terminal: the first column to the left, the others to the right, as wide as they need.
std::string text_table(const std::vector<std::vector<std::string>>& lines) {
  std::vector<size_t> widths(lines[0].size());
  for (const auto& line : lines)
    for (size_t i = 0; i < line.size(); ++i) widths[i] = std::max(widths[i], line[i].size());
  std::ostringstream out;
  for (const auto& line : lines) {
    for (size_t i = 0; i < line.size(); ++i)
      out << (i ? "  " : "") << (i ? std::right : std::left) << std::setw(static_cast<int>(widths[i]))
          << line[i];
    out << "\n";
  }
  return out.str();
}

}  // namespace

std::string results_table(const json& results) {
  std::string out;
  for (const json& task : results.at("tasks")) {
    std::vector<std::vector<std::string>> all = {{"method", "budget", "kept %", "average", "all rows", "F1",
                                                  "vision", "prefill", "prune", "decode", "total ms", "GFLOP",
                                                  "KV MiB"}},
                                          by_set = {{"method", "budget"}};
    for (const json& set : task.at("sets")) by_set[0].push_back(set);
    size_t unparsed = 0;
    for (const json& cell : results.at("cells")) {
      if (cell.at("task") != task.at("name")) continue;
      const json &sums = cell.at("all"), &ms = sums.at("times_ms");
      all.push_back({cell.at("method"), cell.at("budget"), fixed(100 * sums.at("kept").get<double>(), 1),
                     fixed(cell.at("average"), 3), fixed(sums.at("score"), 3),
                     fixed(member(sums.at("mask"), "f1"), 3), fixed(ms.at("vision"), 1),
                     fixed(ms.at("prefill"), 1), fixed(ms.at("prune"), 2), fixed(ms.at("decode"), 1),
                     fixed(ms.at("total"), 1), fixed(sums.at("gflop").at("total"), 2),
                     fixed(sums.at("kv_mib"), 3)});
      auto& line = by_set.emplace_back();
      line = {cell.at("method"), cell.at("budget")};
      for (const json& set : task.at("sets"))
        line.push_back(fixed(member(member(cell.at("sets"), set.get<std::string>().c_str()), "score"), 3));
      unparsed += cell.value("unparsed", size_t{0});
    }
    out += concat(task.at("name").get<std::string>(), ": ", task.at("rows"), " rows, score ",
                  task.at("score").get<std::string>(), "\n", text_table(all));
    if (task.at("sets").size() > 1) out += "score of each set\n" + text_table(by_set);
    if (unparsed > 0)
      out +=
          concat(unparsed, " replies of the judge held no score and count 0; the same command asks again\n");
  }
  return out;
}

}  // namespace glimpse
