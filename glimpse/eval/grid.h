#pragma once

#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "glimpse/eval/task.h"
#include "glimpse/prune/pruner.h"

namespace glimpse {

/// One way of answering: a pruning composition under a budget.
struct GridCell {
  std::string method;  ///< as given, without spaces
  std::string
      budget;  ///< "own" (the method's own rule), "from" (another run's counts) or a fraction as given

  /// Names the cell, in files too.
  std::string label() const { return method + "@" + budget; }
  /// The fraction, if the budget is one.
  std::optional<double> keep() const;
};

/// Every method under every budget, in the order given. "METHOD@BUDGET" stands for itself; `none` and
/// `reference`, which take no budget, are there once. Error for a budget that is no fraction in (0, 1] and
/// for a cell that occurs twice.
std::vector<GridCell> make_grid(const std::vector<std::string>& methods,
                                const std::vector<std::string>& budgets);

/// Splits at commas outside parentheses; "a(x=1,y=2),b" has two parts.
std::vector<std::string> split_methods(const std::string& text);

/// How many tokens an earlier run kept of each row: an output of `glimpse infer`, or one of `glimpse eval`'s
/// files of answers.
class KeptCounts {
 public:
  KeptCounts() = default;
  /// Error naming file and line for what is no such output.
  explicit KeptCounts(const std::filesystem::path& file);
  /// Error when the file has no such row.
  int64_t of(const TaskRow& row) const;

 private:
  std::string name_;
  std::unordered_map<std::string, int64_t> counts_;
};

}  // namespace glimpse
