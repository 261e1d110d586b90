#include <algorithm>
#include <cstdlib>
#include <iomanip>
#include <iostream>
#include <set>

#include "flags.h"
#include "glimpse/base/json_file.h"
#include "glimpse/models/video_settings.h"
#include "glimpse/train/trainer.h"
#include "rows.h"

namespace glimpse::app {

namespace {

namespace fs = std::filesystem;

struct TrainFlags {
  const char* command = "train";
  Fetching fetching;
  std::string config, out, resume;
  std::vector<std::string> data;
  SettingFlags settings, frames;
  TrainOptions parsed;  ///< only to check values while parsing
  bool overwrite = false;
};

// Of a run that goes on: how it runs here, and how far.
const std::set<std::string> kMayChange = {"threads", "loader_threads", "device", "epochs", "max_steps"};

// The settings of a new run, or those of the one to resume.
TrainOptions options_of(const TrainFlags& flags) {
  TrainOptions options;
  options.tune = flags.parsed.tune;
  if (flags.resume.empty()) {
    if (!flags.config.empty()) options.read_yaml(flags.config);
    if (!flags.data.empty()) options.data = flags.data;
  } else {
    const fs::path file = fs::path(flags.resume) / "train.json";
    check(
        fs::exists(file), flags.resume, " is no training run: there is no train.json in it",
        std::getenv("RANK") ? "; every process needs the run's directory, or a copy of its train.json" : "");
    nlohmann::json settings = read_json(file);
    settings.erase("began");  // the trainer's own
    options.from_json(settings, file.string());
    check(flags.config.empty() && flags.data.empty() && flags.out.empty(),
          "--resume goes on with the run's own settings; --config, --data and --out do not go with it");
    for (const SettingFlags* given : {&flags.settings, &flags.frames})
      for (const auto& [name, text] : given->values())
        check(kMayChange.contains(name), "--resume goes on with the run's own ", name,
              "; only --threads, --loader-threads, --device, --epochs and --max-steps may differ");
  }
  flags.settings.apply(options.fields());
  flags.frames.apply(options.video.fields());
  return options;
}

// What a new run reads must not lie in the directory that it empties first.
void check_kept(const fs::path& out, const TrainOptions& options) {
  std::error_code ignored;
  const std::string whole = (fs::weakly_canonical(out, ignored) / "").string();
  std::vector<std::string> inputs = options.data;
  for (const std::string& dir :
       {options.model, options.new_modules, options.image_root, options.teacher, options.cache_dir})
    inputs.push_back(dir);
  if (options.tune) inputs.push_back(options.tune->adapter);
  for (const std::string& input : inputs)
    check(input.empty() || !(fs::weakly_canonical(input, ignored) / "").string().starts_with(whole), "--out ",
          out.string(), " is or holds ", input, ", which is read; --overwrite would remove it");
}

// A new run needs a folder of its own. The other processes may come later than the first.
fs::path run_folder(const TrainFlags& flags, const TrainOptions& options) {
  if (!flags.resume.empty()) return flags.resume;
  check(!flags.out.empty(), "name the run's directory with --out, or one to go on with by --resume");
  const char* rank = std::getenv("RANK");
  if (rank && std::string_view(rank) != "0") return flags.out;
  const fs::path out = flags.out;
  std::error_code ignored;
  const bool run = fs::exists(out / "train.json", ignored);
  check(!run || flags.overwrite, flags.out, " holds a training run; go on with it by --resume ", flags.out,
        ", or start again with --overwrite");
  const auto is_lock = [](const fs::directory_entry& entry) { return entry.path().filename() == ".lock"; };
  if (run) {
    check_kept(out, options);
    const FileLock alone(out / ".lock", LockKind::exclusive);
    for (const auto& entry : fs::directory_iterator(out))
      if (!is_lock(entry)) fs::remove_all(entry.path());
  } else if (fs::exists(out, ignored)) {
    check(fs::is_directory(out) && std::all_of(fs::directory_iterator(out), {}, is_lock), flags.out,
          " exists and is no empty directory");
  }
  return out;
}

std::string note(const StepMetrics& metrics, bool tuned) {
  const auto value = [&](const char* name) {
    for (const auto& [key, number] : metrics.numbers)
      if (key == name) return number;
    return 0.0;
  };
  std::ostringstream out;
  out << std::fixed << std::setprecision(3);
  if (tuned) {
    for (const auto& [key, number] : metrics.numbers)
      if (key != "grad_norm" && key != "lr" && key != "samples_per_s") out << key << " " << number << " ";
    out << std::setprecision(2) << value("samples_per_s") << " samples/s";
    return out.str();
  }
  out << "le " << value("le_loss") << " loc " << value("loc_loss") << " P " << value("precision") << " R "
      << value("recall") << " F1 " << value("f1") << " IoU " << value("iou") << std::setprecision(1)
      << " kept " << 100 * value("kept") << " % " << value("samples_per_s") << " samples/s";
  return out.str();
}

// Sees that the models are there. A new run without a model has the one that its modules were made for, and
// shows videos as its model wants it.
void provide_models(const TrainFlags& flags, TrainOptions& options, Interrupt& interrupt) {
  EngineOptions all;
  all.model = options.model;
  std::vector<std::string> names = {options.new_modules, options.teacher};
  if (options.tune) names.push_back(options.tune->adapter);
  if (flags.resume.empty()) {
    for (const std::string& name : names)
      if (!name.empty()) all.new_modules.push_back(name);
    flags.fetching.provide(all, interrupt);
    options.model = all.model;
    options.video =
        video_options(options.video, {options.min_pixels, options.max_pixels}, *model_source(all));
  } else {
    check(flags.fetching.with_revision(options.model) == options.model,
          "--resume goes on with the run's own model; --revision does not go with it");
    names.push_back(options.model);
    flags.fetching.provide(names, interrupt);
  }
}

int run(const TrainFlags& flags, Interrupt& interrupt) {
  TrainOptions options = options_of(flags);
  const bool about_videos =
      flags.resume.empty() && options.video.fields().to_json() != VideoOptions().fields().to_json();
  provide_models(flags, options, interrupt);
  const std::unique_ptr<World> world = World::from_environment(parse_device(local_device(options.device)));
  const fs::path folder = run_folder(flags, options);
  Trainer trainer(options, folder, *world, !flags.resume.empty());
  if (world->first()) {
    for (const std::string& each : trainer.notes())
      std::cerr << "glimpse: " << folder.string() << ": " << each << "\n";
    if (about_videos && !trainer.shows_videos())
      std::cerr << "glimpse: --fps and what else there is for videos: there is no video in the rows\n";
    std::cerr << "glimpse: " << trainer.rows() << " rows, " << trainer.total_steps() << " steps";
    if (trainer.first_step() > 0) std::cerr << ", going on after step " << trainer.first_step();
    std::cerr << "\n";
  }
  std::optional<Progress> progress;
  if (world->first())
    progress.emplace(static_cast<size_t>(trainer.total_steps()), static_cast<size_t>(trainer.first_step()),
                     "steps");
  const bool done = trainer.run(interrupt.arm(), [&](const StepMetrics& metrics) {
    if (progress) progress->step(note(metrics, options.tune.has_value()));
  });
  progress.reset();
  if (!world->first()) return done ? 0 : 130;
  if (!done) {
    std::cerr << "glimpse: stopped; glimpse " << flags.command << " --resume " << folder.string()
              << " goes on from here\n";
    return 130;
  }
  std::cerr << "glimpse: wrote " << (folder / "final").string() << " and "
            << (folder / "report.html").string() << "\n";
  return 0;
}

// What both commands take.
std::function<int()> add_flags(CLI::App& app, Interrupt& interrupt, std::shared_ptr<TrainFlags> flags) {
  app.add_option("-c,--config", flags->config,
                 concat("YAML file of settings (see configs/", flags->command, "); flags win over it"))
      ->type_name("FILE");
  app.add_option(
         "--data", flags->data,
         "JSONL file of rows: question, answer, image or video, dataset, bboxs, width, height (repeatable)")
      ->type_name("FILE")
      ->allow_extra_args(false);
  app.add_option("-o,--out", flags->out, "the run's directory")->type_name("DIR");
  app.add_option("--resume", flags->resume, "go on with the run in this directory")->type_name("DIR");
  app.add_flag("--overwrite", flags->overwrite, "start a run again that --out already holds");
  flags->fetching.add(app, true, "Options");
  flags->settings.add(app, flags->parsed.fields(), "Settings");
  // Bounds on the pixels are settings already.
  flags->frames.add(app, flags->parsed.video.fields(), "Video", "", {"min_pixels", "max_pixels"});
  return [flags, &interrupt] { return run(*flags, interrupt); };
}

}  // namespace

std::function<int()> add_train(CLI::App& app, Interrupt& interrupt) {
  app.footer(
      "Example:\n"
      "  glimpse train --config configs/train/qwen2_5_vl_7b.yaml --model DIR --data rows.jsonl --image-root "
      "DIR --out run\n"
      "  glimpse ask --model DIR --new-modules run/final --image a.jpg \"What is this?\"\n"
      "On several processes start it with torchrun, which sets RANK, WORLD_SIZE, MASTER_ADDR and "
      "MASTER_PORT.");
  return add_flags(app, interrupt, std::make_shared<TrainFlags>());
}

std::function<int()> add_tune(CLI::App& app, Interrupt& interrupt) {
  app.footer(
      "Example:\n"
      "  glimpse tune --config configs/tune/qwen2_5_vl_7b_rl.yaml --model DIR --data rows.jsonl --image-root "
      "DIR --judge-url http://host/v1 --judge-model NAME --out run\n"
      "  glimpse merge --model DIR --adapter run/final --out merged\n"
      "  glimpse train --config configs/train/qwen2_5_vl_7b.yaml --model merged --data rows.jsonl "
      "--image-root DIR --out modules\n"
      "Visual tokens outside the rows' boxes are pruned. On several processes start it with torchrun.");
  auto flags = std::make_shared<TrainFlags>();
  flags->command = "tune";
  flags->parsed.tune.emplace();
  return add_flags(app, interrupt, flags);
}

}  // namespace glimpse::app
