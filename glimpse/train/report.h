#pragma once

#include <filesystem>

namespace glimpse {

/// Writes `run_dir`/report.html, a page on its own without scripts: settings, final numbers, curves, and
/// examples before and after. It is made from
///   metrics.jsonl                          as MetricsLog writes it; without a log step this is an error,
///   train.json                          an object of any depth, if there,
///   overlays/step-XXXXXX-row-Y.png         examples, if there: of each row the first and the last step,
///   overlays/row-Y.txt                     what stands above the example (the question), if there,
///   answers/before.json, after.json        answers to the same questions, if there.
void write_report(const std::filesystem::path& run_dir);

}  // namespace glimpse
