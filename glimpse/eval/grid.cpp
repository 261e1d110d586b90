#include "glimpse/eval/grid.h"

#include <algorithm>
#include <charconv>
#include <set>

#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"
#include "glimpse/eval/line_file.h"

namespace glimpse {

namespace {

std::optional<double> fraction(const std::string& text) {
  double value = 0;
  const char *first = text.data(), *last = first + text.size();
  const auto [end, error] = std::from_chars(first, last, value);
  if (error != std::errc() || end != last || !(value > 0 && value <= 1)) return {};
  return value;
}

void check_budget(const std::string& budget) {
  check(budget == "own" || budget == "from" || fraction(budget),
        "budget: expected a fraction in (0, 1] or own, got '", budget, "'");
}

}  // namespace

std::optional<double> GridCell::keep() const {
  return fraction(budget);
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
    check(cell.label().size() < 200, "methods: '", cell.label().substr(0, 40), "...' is too long");
    cells.push_back(cell);
  };
  for (const std::string& budget : budgets) check_budget(budget);
  for (const std::string& method : methods) {
    check(!method.empty() && method[0] != '.' && method.find('/') == method.npos, "methods: '", method,
          "' is no pruning method");
    const bool budgetless = method == "none" || method.starts_with("reference");
    if (const size_t at = method.find('@'); at != method.npos) {
      const GridCell cell{method.substr(0, at), method.substr(at + 1)};
      check_budget(cell.budget);
      add(cell);
    } else if (budgetless) {
      add({method, "own"});
    } else {
      for (const std::string& budget : budgets) add({method, budget});
    }
  }
  check(!cells.empty(), "methods: nothing to evaluate");
  return cells;
}

KeptCounts::KeptCounts(const std::filesystem::path& file) : name_(file.string()) {
  check_is_file(file);
  visit_whole_lines(file, [&](const nlohmann::json& row) {
    const auto& kept = member(row, "kept_tokens");
    check(row.is_object() && row.contains("id") && kept.is_number_integer(), name_,
          ": expected rows of glimpse infer or eval, with id and kept_tokens");
    const std::string key =
        row.contains("set") ? nlohmann::json::array({row["set"], row["id"]}).dump() : row["id"].dump();
    counts_[key] = kept.get<int64_t>();
  });
}

int64_t KeptCounts::of(const TaskRow& row) const {
  auto found = counts_.find(row.key());
  if (found == counts_.end()) found = counts_.find(row.id.dump());
  check(found != counts_.end(), name_, " has no row with id ", row.id.dump(), " (", row.place, ")");
  return found->second;
}

}  // namespace glimpse
