#pragma once

#include "glimpse/eval/evaluation.h"
#include "glimpse/score/command.h"
#include "glimpse/score/judge.h"

namespace glimpse {

/// Who is asked for scores that no rule gives; null where no task needs it.
struct Scorers {
  Judge* judge = nullptr;
  ScoreCommand* command = nullptr;
};

/// What all answers of a complete plan come to, as results.json holds it:
///   tasks  name, score, sets and number of rows
///   cells  per task and way of answering: score of each set, their `average` and that of all rows (with its
///          standard error), kept share, masks against the boxes, mean times, operations, bytes of keys and
///          values, peak memory of an answer (null where it could not be measured), the settings of its
///          `pruning` methods, and how many replies of the judge held no score (`unparsed`; they count 0)
/// Rows that any way of answering could not answer count nowhere; `left_out` says how many. `judged` is
/// called after each reply of the judge.
nlohmann::json make_results(const EvalPlan& plan, const Scorers& scorers, const std::stop_token& stop,
                            const std::function<void()>& judged);

/// How many answers the judge still has to see.
size_t unjudged(const EvalPlan& plan, const Judge& judge);

/// A number with this many digits after its point; "-" for null.
std::string fixed(const nlohmann::json& value, int places);

/// One line for each task, way of answering and set, and for `average` and `all rows`.
std::string results_csv(const nlohmann::json& results);

/// The main numbers as tables for people.
std::string results_table(const nlohmann::json& results);

/// The page: tables, curves of accuracy against kept tokens and against time, and for a few rows the picture
/// with what each method kept and what it answered. `about` is what else it tells: settings, machine, commit.
std::string results_page(const EvalPlan& plan, const nlohmann::json& results, const nlohmann::json& about,
                         size_t gallery_rows);

}  // namespace glimpse
