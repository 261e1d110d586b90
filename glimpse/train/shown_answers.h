#pragma once

#include <filesystem>
#include <string>

#include "glimpse/train/example.h"
#include "glimpse/train/trainable.h"

namespace glimpse {

/// Moments of a run whose answers the report compares.
enum class Shown { before, after };

/// Writes what `trained` answers to the rows now, into the run's answers/before.json or after.json: a list of
/// question, right answer, answer, and score if there is one. Rows that cannot be used are left out; nothing
/// is written where none is answered.
void write_answers(const std::filesystem::path& run_dir, Shown when, Trainable& trained, const Vlm& model,
                   const std::vector<TrainRow>& rows, const MediaOptions& media);

/// Both as a table for a web page; "" where there are none.
std::string answers_table(const std::filesystem::path& run_dir);

}  // namespace glimpse
