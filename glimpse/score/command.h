#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "glimpse/base/options.h"

namespace glimpse {

/// A program of the user's that scores answers.
struct ScoreCommandOptions {
  /// The program and its arguments; "": none. Quotes of both kinds hold words together, a backslash goes
  /// before quotes and backslashes that are meant; no shell reads it.
  std::string command;
  double timeout_s = 120;  ///< to wait for a line

  Fields fields();
};

/// Such a program at work, started once. Of each answer it reads a line of JSON and writes one, in order,
/// {"score": x} with 0 <= x <= 1. What it writes to standard error goes where ours does. It ends when its
/// input does.
class ScoreCommand {
 public:
  /// Error when there is no such program.
  explicit ScoreCommand(ScoreCommandOptions options);
  /// Ends its input, waits a little for it to end, and kills it with what it started.
  ~ScoreCommand();
  ScoreCommand(const ScoreCommand&) = delete;

  /// The score of each answer, an object such as answer_line() makes. Error when the program ends before all
  /// are scored, writes something else than a score or more lines than answers, or nothing for too long; it
  /// cannot be asked again then.
  std::vector<double> scores(const std::vector<nlohmann::json>& answers);

 private:
  struct Child;
  [[noreturn]] void give_up(const std::string& why, size_t scored, size_t asked);

  const ScoreCommandOptions options_;
  std::unique_ptr<Child> child_;
};

/// What the program reads of every answer; rows add members of their own.
nlohmann::json answer_line(const nlohmann::json& id, const std::string& question, const std::string& right,
                           const std::string& completion);

}  // namespace glimpse
