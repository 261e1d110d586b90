#pragma once

#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "glimpse/eval/task.h"
#include "glimpse/prune/pruner.h"

namespace glimpse {

/// A budget as text: a fraction in (0, 1], or a number of tokens of all images together, which is an integer
/// above 1. Nothing for anything else.
std::optional<Budget> parse_budget(const std::string& text);

/// Whether a budget means something to a composition: not to `none`, nor where the boxes of `reference` have
/// the last word.
bool takes_budget(const std::string& method);

/// One way of answering: a pruning composition under a budget.
struct GridCell {
  std::string method;  ///< as given, without spaces
  std::string budget;  ///< "own" (the method's own rule), "from" (another run's counts), a fraction or a
                       ///< count as given

  /// Names the cell, in files too.
  std::string label() const { return method + "@" + budget; }
};

/// Every method under every budget, in the order given. "METHOD@BUDGET" stands for itself; methods that take
/// no budget are there once. Error for what is no budget, for a method that takes none under one (or needs
/// one and has none), and for a cell that occurs twice.
std::vector<GridCell> make_grid(const std::vector<std::string>& methods,
                                const std::vector<std::string>& budgets);

/// Splits at commas outside parentheses; "a(x=1,y=2),b" has two parts.
std::vector<std::string> split_methods(const std::string& text);

/// The files of a cell's answers in a folder, one of each process that ever worked on it.
std::vector<std::filesystem::path> answer_files(const std::filesystem::path& dir, const std::string& label);

/// How many tokens of each image an earlier run kept.
class KeptCounts {
 public:
  KeptCounts() = default;
  /// `run` is an output of `glimpse infer`, or a file of answers of `glimpse eval`, or RUN/METHOD@BUDGET:
  /// what all processes of an evaluation in the folder RUN answered that way. Error naming the file for what
  /// is no such thing.
  explicit KeptCounts(const std::filesystem::path& run);
  bool given() const { return !name_.empty(); }
  /// As a budget for a row. Error when the run has no such row or could not answer it.
  const Budget& of(const std::string& set, const nlohmann::json& id) const;
  /// Names the counts by what they are, wherever they come from.
  std::string hash() const;

 private:
  void read(const std::filesystem::path& file);
  std::string name_;
  std::unordered_map<std::string, Budget> counts_;
  std::unordered_map<std::string, std::string> problems_;  ///< of rows that the run could not answer
};

}  // namespace glimpse
