#pragma once

#include <optional>

#include "glimpse/score/command.h"
#include "glimpse/score/judge.h"
#include "glimpse/train/forward.h"
#include "glimpse/train/options.h"

namespace glimpse {

/// Scores answers to rows, each as it says itself or else as the settings say; several functions add up.
class RowScores {
 public:
  /// Starts the user's program, if the settings name one. `judged`: where a judge's scores are kept.
  RowScores(const TuneOptions& options, const std::filesystem::path& judged);

  /// Error when there is no such score, or what it asks was not named. For use by several threads.
  void check_row(const TrainRow& row) const;
  /// Of each answer to the example's row, which check_row() let pass. What a judge does not score counts 0.
  std::vector<double> of(const Example& example, const std::vector<std::string>& answers);

 private:
  const std::vector<std::string>& names(const TrainRow& row) const {
    return row.scores.empty() ? default_ : row.scores;
  }

  const std::vector<std::string> default_;
  std::optional<Judge> judge_;
  std::optional<ScoreCommand> command_;
};

}  // namespace glimpse
