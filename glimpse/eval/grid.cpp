#include "glimpse/eval/grid.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <set>

#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"
#include "glimpse/io/line_file.h"
#include "glimpse/io/run_identity.h"
#include "glimpse/prune/registry.h"

namespace glimpse {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

// The whole text as a number.
template <class Number>
std::optional<Number> number_of(const std::string& text) {
  Number value = 0;
  const char *first = text.data(), *last = first + text.size();
  const auto [end, error] = std::from_chars(first, last, value);
  if (error != std::errc() || end != last) return {};
  return value;
}

// "c" of "a+b+c(x=1+2)".
std::string last_stage(const std::string& method) {
  size_t begin = 0;
  int depth = 0;
  for (size_t i = 0; i < method.size(); ++i) {
    depth += method[i] == '(' ? 1 : method[i] == ')' ? -1 : 0;
    if (method[i] == '+' && depth == 0) begin = i + 1;
  }
  begin = std::min(method.find_first_not_of(' ', begin), method.size());
  return method.substr(begin, method.find_first_of(" (", begin) - begin);
}

void check_cell(const GridCell& cell) {
  check(cell.label().size() < 200, "methods: '", cell.label().substr(0, 40), "...' is too long");
  const std::string stage = last_stage(cell.method);
  if (cell.budget == "own") {
    check(budgeted(stage) != PrunerInfo::Budgeted::must, "methods: ", stage,
          " has no rule of its own; give it a budget, as in ", stage, "@0.111");
    return;
  }
  check(takes_budget(cell.method), "methods: ", cell.label(), ": ", stage,
        " takes no budget; write it without one");
}

void check_budget(const std::string& budget) {
  check(budget == "own" || budget == "from" || parse_budget(budget),
        "budget: expected a fraction in (0, 1], a number of tokens above 1, or own, got '", budget, "'");
}

// What a line of answers says was kept: of each image, or in all where it does not say.
Budget kept_in(const json& line) {
  Budget budget;
  int64_t sum = 0;
  const int64_t all = member(line, "kept_tokens").get<int64_t>();
  const json& keep = member(line, "keep");
  const json& media = member(line, "medium");  // whose each list is, where some have several
  for (size_t i = 0; keep.is_array() && i < keep.size(); ++i) {
    const bool goes_on = i > 0 && media.is_array() && i < media.size() && media[i] == media[i - 1];
    if (!goes_on) budget.counts.push_back(0);
    budget.counts.back() += std::ssize(keep[i]);
    sum += std::ssize(keep[i]);
  }
  if (!budget.counts.empty() && sum == all) return budget;
  return {.keep = {}, .count = all, .counts = {}};
}

std::string key_of(const std::string& set, const json& id) {
  return json_text(json::array({set, id}));
}

}  // namespace

std::optional<Budget> parse_budget(const std::string& text) {
  Budget budget;
  if (const auto count = number_of<int64_t>(text); count && *count > 1)
    budget.count = count;
  else if (const auto keep = number_of<double>(text); keep && *keep > 0 && *keep <= 1)
    budget.keep = keep;
  else
    return {};
  return budget;
}

bool takes_budget(const std::string& method) {
  return budgeted(last_stage(method)) != PrunerInfo::Budgeted::never;
}

std::vector<std::string> split_methods(const std::string& text) {
  std::vector<std::string> parts(1);
  int depth = 0;
  for (const char c : text) {
    depth += c == '(' ? 1 : c == ')' ? -1 : 0;
    if (c == ',' && depth == 0)
      parts.emplace_back();
    else if (c != ' ' && c != '\t')
      parts.back() += c;
  }
  return parts;
}

std::vector<GridCell> make_grid(const std::vector<std::string>& methods,
                                const std::vector<std::string>& budgets) {
  std::vector<GridCell> cells;
  std::set<std::string> labels;
  const auto add = [&](const GridCell& cell) {
    check(labels.insert(cell.label()).second, "methods: ", cell.label(), " occurs twice");
    check_cell(cell);
    cells.push_back(cell);
  };
  for (const std::string& budget : budgets) check_budget(budget);
  for (const std::string& method : methods) {
    check(!method.empty() && method[0] != '.' && method.find('/') == method.npos, "methods: '", method,
          "' is no pruning method");
    if (const size_t at = method.find('@'); at != method.npos) {
      const GridCell cell{method.substr(0, at), method.substr(at + 1)};
      check_budget(cell.budget);
      add(cell);
    } else if (!takes_budget(method)) {
      add({method, "own"});
    } else {
      for (const std::string& budget : budgets) add({method, budget});
    }
  }
  check(!cells.empty(), "methods: nothing to evaluate");
  return cells;
}

std::vector<fs::path> answer_files(const fs::path& dir, const std::string& label) {
  std::vector<fs::path> files;
  const std::string start = label + ".r", end = ".jsonl";
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(dir, ignored)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(start) || !name.ends_with(end) || name.size() <= start.size() + end.size())
      continue;
    if (name.find_first_not_of("0123456789", start.size()) == name.size() - end.size())
      files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

KeptCounts::KeptCounts(const fs::path& run) : name_(run.string()) {
  std::error_code ignored;
  if (fs::is_regular_file(run, ignored)) {
    read(run);
    return;
  }
  std::set<std::string> ways;
  std::vector<fs::path> files;
  for (const fs::path& folder : {run, run.parent_path()})
    for (const auto& task : fs::directory_iterator(folder / "answers", ignored)) {
      for (const auto& file : fs::directory_iterator(task, ignored))
        ways.insert(file.path().stem().stem().string());
      for (const fs::path& file : answer_files(task, run.filename().string())) files.push_back(file);
    }
  std::string known;
  for (const std::string& way : ways) known += (known.empty() ? "" : ", ") + way;
  check(!files.empty(), "--budget-from ", name_,
        ": expected an output of glimpse infer, a file of answers of glimpse eval, or RUN/METHOD@BUDGET with "
        "the folder of an evaluation",
        known.empty() ? "" : "; it has ", known);
  for (const fs::path& file : files) read(file);
}

void KeptCounts::read(const fs::path& file) {
  visit_whole_lines(file, [&](const json& line) {
    const json& id = member(line, "id");
    const json& set = member(line, "set");
    const std::string key = key_of(set.is_string() ? set.get<std::string>() : "", id);
    const json& problem = member(line, "problem");
    if (problem.is_string()) {
      problems_[key] = problem.get<std::string>();
      return;
    }
    check(id.is_primitive() && !id.is_null() && member(line, "kept_tokens").is_number_integer(),
          "--budget-from ", file.string(),
          ": expected rows of glimpse infer or eval, with id and kept_tokens");
    const Budget kept = kept_in(line);
    const auto [first, fresh] = counts_.emplace(key, kept);
    check(fresh || (first->second.count == kept.count && first->second.counts == kept.counts),
          "--budget-from ", name_, " has the row ", key,
          " twice, with other counts; name one file of answers");
  });
}

const Budget& KeptCounts::of(const std::string& set, const json& id) const {
  for (const std::string& key : {key_of(set, id), key_of("", id)}) {
    if (const auto found = counts_.find(key); found != counts_.end()) return found->second;
    if (const auto problem = problems_.find(key); problem != problems_.end())
      fail("--budget-from ", name_, " could not answer this row: ", problem->second);
  }
  fail("--budget-from ", name_, " has no row with id ", id.dump(), " of the set '", set, "'");
}

std::string KeptCounts::hash() const {
  std::map<std::string, std::vector<int64_t>> sorted;
  for (const auto& [key, budget] : counts_)
    sorted[key] = budget.count ? std::vector{*budget.count} : budget.counts;
  return content_hash(json(sorted).dump());
}

}  // namespace glimpse
