#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "glimpse/image/video.h"
#include "glimpse/score/command.h"
#include "glimpse/score/judge.h"
#include "glimpse/train/forward.h"
#include "glimpse/train/group.h"
#include "glimpse/train/optimiser.h"
#include "glimpse/train/rollout.h"

namespace glimpse {

/// Settings of GlimpsePrune+'s first stage (method.md section 6), and of its supervised control.
struct TuneOptions {
  std::string stage = "rl";  ///< rl: drawn answers and their scores; sft: the rows' answers
  std::string adapter;       ///< PEFT directory to go on from; "": a new one
  LoraOptions lora;
  GroupOptions group;
  RolloutOptions rollout;
  std::string logprob = "published";
  std::optional<int64_t> cut_layer;  ///< K; none: the modules', else two thirds of the layers, as published
  int64_t max_seq_length = 640, max_prompt = 6000, max_pruned_prompt = 512;
  bool recompute = true;                                  ///< memory does not grow with depth
  std::vector<std::string> scores = {"precision_match"};  ///< of rows that name none
  JudgeOptions judge;
  std::string judge_key_env = "OPENAI_API_KEY";
  ScoreCommandOptions command;
  int64_t held_out = 4;  ///< rows that are answered before and after, and not trained on

  Fields fields();
  /// Error for a setting that no run can have. `layers`: of the model.
  void check_for(int64_t layers) const;
};

/// Everything that a training run depends on (method.md section 5). Defaults are the reference's.
struct TrainOptions {
  std::string model;  ///< directory, hub id, or "" for the built-in model
  /// Modules to go on from, or "" for new ones; in tuning those that prune prompts of rows without boxes.
  std::string new_modules;
  std::vector<std::string> data;  ///< JSONL files of Visual-CoT rows
  std::string image_root = ".";
  std::string dataset;  ///< only rows of this set, or "" for all
  int64_t samples = 0;  ///< random rows of each file (0: all)
  double max_bad_share = 0.01;
  int64_t epochs = 1, batch = 1, accumulation = 8;
  int64_t max_steps = 0;  ///< 0: as many as the epochs have
  OptimiserOptions optimiser;
  LossOptions loss;
  uint64_t seed = 42;
  std::string dtype = "auto", device = "cpu";
  int threads = 0, loader_threads = 2;
  std::optional<int64_t> min_pixels, max_pixels;
  VideoOptions video;  ///< beside fields(): which frames of the rows' videos, and how large
  int64_t log_every = 10, save_every = 100, overlay_every = 100, overlay_rows = 4;
  std::string save_dtype = "fp32";
  nlohmann::json modules = nlohmann::json::object();  ///< pruning settings, as in a new-modules config.json
  /// Settings of a scout (ScoutConfig): then that is what is trained.
  nlohmann::json scout = nlohmann::json::object();
  int64_t cache_mb = 2048;  ///< memory for what a scout's training, and tuning, keep of pictures
  std::string cache_dir;    ///< folder that keeps what the frozen model makes of rows and pictures; "": none
  double cache_disk_gb = 100;       ///< GiB of it there
  std::optional<TuneOptions> tune;  ///< then an adapter is what is trained
  std::string teacher;              ///< modules that a scout learns from; "": those of the built-in model

  Fields fields();  ///< those of what is trained
  /// Sets what a YAML file says: every field by its name, `data` (a file or a list), `modules`, `scout`
  /// and `video` (mappings). Error naming file and the nearest known key when one is unknown.
  void read_yaml(const std::filesystem::path& file);
  nlohmann::json to_json();
  void from_json(const nlohmann::json& json, const std::string& owner);
};

}  // namespace glimpse
