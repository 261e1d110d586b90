#pragma once

#include <algorithm>
#include <functional>
#include <stop_token>

#include "glimpse/io/file_lock.h"
#include "glimpse/train/example.h"
#include "glimpse/train/loader.h"
#include "glimpse/train/metrics.h"
#include "glimpse/train/options.h"
#include "glimpse/train/shown_answers.h"
#include "glimpse/train/trainable.h"
#include "glimpse/train/world.h"

namespace glimpse {

/// Trains glimpse token and predictor, or a scout, on a frozen model (method.md section 5), or an adapter of
/// the language model (section 6). The run's directory holds
///   train.json         every setting, and how the run began, for --resume
///   metrics.jsonl      one line per log step; events.out.tfevents.* have the same for TensorBoard
///   checkpoints/       parameters and optimiser, written whole or not at all
///   overlays/          what is kept of a few fixed rows, every so many steps
///   samples.txt        answers that were drawn, and their scores, of a tuning run
///   answers/           what it answers to a few rows that are held out, before and after
///   final/             config.json, new_modules_gp.pt and new_modules_gp.safetensors, or scout.safetensors,
///   or a
///                      PEFT adapter
///   report.html        curves and examples
/// Given the seed, the result does not depend on loader threads, nor on being stopped and resumed; resumed by
/// another number of processes, a step has the same rows and random numbers, summed in another order.
class Trainer {
 public:
  /// Loads model and rows. With `resume` takes up the run's newest checkpoint, which only the first process
  /// of `world` reads, as only it writes. Errors: settings, model, rows; another process at work in the
  /// directory; to resume, other rows or weights than the run began with, or processes among which its steps
  /// cannot be shared out.
  Trainer(TrainOptions options, std::filesystem::path run, World& world, bool resume);
  ~Trainer();

  /// Trains to the end and writes final/. When `stop` is requested, writes a checkpoint after the current
  /// step and returns false. When another process is lost, writes a checkpoint and throws Error.
  bool run(std::stop_token stop, const std::function<void(const StepMetrics&)>& after_step);

  int64_t first_step() const { return step_; }
  int64_t total_steps() const { return total_steps_; }
  size_t rows() const { return rows_.size(); }
  bool shows_videos() const { return std::ranges::any_of(rows_, &TrainRow::video); }
  /// What is worth knowing about how the run goes on, a line each.
  const std::vector<std::string>& notes() const { return notes_; }

 private:
  struct Sums;

  int64_t step_rows() const { return options_.batch * accumulation_ * world_.size(); }
  void take_up_beginning(const std::string& weights, bool resume);
  void hold_out();
  void plan_steps();
  void take_up_checkpoint();
  void write_settings();
  std::vector<size_t> batch_rows(int64_t step, int64_t batch);
  StepMetrics take_step(Loader<LoadedRow>& loader, bool stop);
  MediaOptions media() const { return {{options_.min_pixels, options_.max_pixels}, options_.video}; }
  LoadedRow loaded(const TrainRow& row) const;
  void note_sample();
  void report_broken(const std::string& problem);
  void save();
  void draw_overlays();
  void note_answers(Shown when);
  void finish();

  TrainOptions options_;
  std::filesystem::path run_;
  World& world_;
  std::unique_ptr<Vlm> model_;
  std::unique_ptr<Trainable> modules_;
  std::unique_ptr<Optimiser> optimiser_;
  std::unique_ptr<MetricsLog> log_;  // of the first process
  std::optional<FileLock> lock_;     // of the first process
  nlohmann::json began_;             // of the first process: rows, weights, processes, schedules
  std::vector<std::string> notes_;
  std::vector<TrainRow> rows_, held_out_;
  std::vector<size_t> order_;  // of the epoch that batch_rows() was asked about last
  int64_t processes_ = 1;      // that the run began on
  int64_t accumulation_ = 1;   // batches of this process per step, now
  int64_t step_ = 0, total_steps_ = 0, steps_per_epoch_ = 0, ordered_epoch_ = -1, broken_ = 0;
  bool stopping_ = false;
};

}  // namespace glimpse
