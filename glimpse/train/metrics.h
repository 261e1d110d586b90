#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "glimpse/train/event_file.h"
#include "glimpse/train/mask_score.h"

namespace glimpse {

/// What a log step says: numbers by name, in the order in which they are written (le_loss, loc_loss, dice,
/// bce, loss, precision, recall, f1, iou, kept, grad_norm, lr, samples_per_s, ...). A name may have a part
/// before a
/// '/', such as "val/f1"; in TensorBoard the others stand under "train/".
struct StepMetrics {
  int64_t step = 0;  ///< optimiser steps done
  double epoch = 0;  ///< passes over the data done
  std::vector<std::pair<std::string, double>> numbers = {};

  void add(const std::string& name, double value) { numbers.emplace_back(name, value); }
  /// precision, recall, f1, iou, kept; `prefix` before each name ("val/").
  void add(const MaskScore& score, const std::string& prefix = "");
};

/// The lines of a metrics.jsonl: {"step": 10, "epoch": 0.5, "loss": 1.25, ...}; null is read as not a number.
/// A last line without its end, torn when the program was killed, is left out. Errors name file and line.
std::vector<StepMetrics> read_metrics(const std::filesystem::path& file);

/// Where a run's numbers go: `run_dir`/metrics.jsonl, one line per log step, and a TensorBoard event file in
/// `run_dir`.
class MetricsLog {
 public:
  /// Goes on after step `last_step`: what was written of later steps is dropped. -1 begins anew.
  explicit MetricsLog(const std::filesystem::path& run_dir, int64_t last_step = -1);

  /// Both files have it when this returns. Numbers that are not finite are null in metrics.jsonl.
  void write(const StepMetrics& metrics);
  /// For pictures and texts.

 private:
  std::filesystem::path path_;
  EventFile events_;
  std::ofstream out_;
};

}  // namespace glimpse
