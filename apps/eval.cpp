#include <cstdlib>
#include <iostream>

#include "built_from.h"
#include "flags.h"
#include "glimpse/base/atomic_file.h"
#include "glimpse/base/json_file.h"
#include "glimpse/eval/downsample.h"
#include "glimpse/eval/machine.h"
#include "glimpse/eval/masks.h"
#include "glimpse/eval/results.h"
#include "glimpse/eval/row_score.h"
#include "glimpse/models/video_settings.h"
#include "glimpse/train/world.h"
#include "rows.h"

namespace glimpse::app {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

struct EvalFlags {
  EngineOptions engine;
  Fetching fetching;
  ImageBounds bounds;
  SettingFlags frames;
  VideoOptions video;
  std::vector<std::string> tasks, methods, budgets = {"own"}, sets;
  std::string out, data_root, image_root, budget_from, masks_out;
  std::string judge_key = "OPENAI_API_KEY";
  JudgeOptions judge;
  ScoreCommandOptions command;
  std::optional<int64_t> max_new_tokens;
  size_t limit = 0, gallery = 6;
  bool overwrite = false, keep_going = false, masks_only = false;
};

std::vector<std::string> split_all(const std::vector<std::string>& given) {
  std::vector<std::string> out;
  for (const std::string& text : given)
    for (std::string& part : split_methods(text)) out.push_back(std::move(part));
  return out;
}

// The rows that can be asked; with --keep-going the others are left out, else they are errors.
std::vector<TaskRow> rows_of(const EvalFlags& flags, const Task& task, const TaskSource& source,
                             const KeptCounts& counts) {
  std::vector<TaskRow> rows = read_task_rows(task, source);
  std::erase_if(rows, [&](TaskRow& row) {
    if (row.problem.empty() && counts.given()) try {
        counts.of(row.set, row.id);
      } catch (const Error& error) {
        row.problem = error.what();
      }
    if (row.problem.empty()) return false;
    check(flags.keep_going, row.place, ": ", row.problem);
    std::cerr << "glimpse: " << row.place << ": left out: " << row.problem << "\n";
    return true;
  });
  check(!rows.empty(), "task ", task.name, ": no row can be asked");
  return rows;
}

bool shows_videos(const EvalPlan& plan) {
  return std::ranges::any_of(plan.tasks, [](const EvalTask& task) {
    return std::ranges::any_of(task.rows, [](const TaskRow& row) { return !row.videos.empty(); });
  });
}

EvalPlan make_plan(const EvalFlags& flags) {
  EvalPlan plan;
  if (!flags.budget_from.empty()) plan.counts = KeptCounts(flags.budget_from);
  if (!flags.judge.url.empty()) check_judge(flags.judge);
  for (const std::string& name :
       flags.tasks.empty() ? std::vector<std::string>{"tiny"} : split_all(flags.tasks)) {
    const fs::path file = find_task(name);
    EvalTask task{Task::read(file), {}};
    for (const EvalTask& other : plan.tasks)
      check(other.task.name != task.task.name, "task ", task.task.name, " is named twice");
    if (flags.masks_only) task.task.score = "mask_iou";
    TaskSource source{flags.data_root.empty() ? file.parent_path() : fs::path(flags.data_root),
                      flags.image_root, split_all(flags.sets), flags.limit, flags.keep_going};
    task.rows = rows_of(flags, task.task, source, plan.counts);
    check(!needs_judge(task.task.score) || !flags.judge.url.empty(), "task ", task.task.name,
          " is scored by a judge: name a server with --judge-url and --judge-model");
    check(!needs_command(task.task.score) || !flags.command.command.empty(), "task ", task.task.name,
          " is scored by a program: name it with --score-command");
    plan.tasks.push_back(std::move(task));
  }
  std::vector<std::string> methods = flags.methods, budgets = flags.budgets;
  if (methods.empty()) {
    const bool modules = flags.engine.model.empty() || !flags.engine.new_modules.empty();
    methods = {modules ? "none,glimpse" : "none"};
  }
  if (!flags.budget_from.empty()) {
    check(plan.tasks.size() == 1, "--budget-from is for one task");
    budgets = {"from"};
  }
  plan.cells = make_grid(split_all(methods), split_all(budgets));
  for (const GridCell& cell : plan.cells)
    check(cell.budget != "from" || plan.counts.given(), "methods: ", cell.label(),
          ": --budget-from names no run");
  plan.out = flags.out;
  plan.shard = shard_from_environment();
  plan.bounds = flags.bounds;
  plan.video = flags.video;
  check(!flags.frames.given() || shows_videos(plan),
        "--fps and what else there is for videos: there is no video in the rows");
  plan.max_new_tokens = flags.masks_only ? 1 : flags.max_new_tokens;
  plan.keep_going = flags.keep_going;
  check(flags.keep_going || !shows_videos(plan) ||
            std::ranges::none_of(plan.cells, [](const GridCell& cell) { return cell.method == kDownsample; }),
        "methods: ", kDownsample,
        " makes pictures smaller, but the rows have videos; leave it out, or leave "
        "those rows out with --keep-going");
  return plan;
}

EvalSettings settings_of(const EvalFlags& flags, const EvalPlan& plan) {
  const EngineOptions& e = flags.engine;
  json tasks = json::array();
  for (const EvalTask& task : plan.tasks) tasks.push_back(task.task.to_json());
  json settings = model_settings(e);
  settings.update({{"commit", kBuiltFrom},
                   {"device", e.device},
                   {"threads", e.threads},
                   {"tasks", tasks},
                   {"budget_from", flags.budget_from},
                   {"max_new_tokens", plan.max_new_tokens ? json(*plan.max_new_tokens) : json()},
                   {"min_pixels", flags.bounds.min_pixels ? json(*flags.bounds.min_pixels) : json()},
                   {"max_pixels", flags.bounds.max_pixels ? json(*flags.bounds.max_pixels) : json()},
                   {"preprocessing", flags.bounds.preprocessing},
                   {"sampling", "greedy"}});
  // Records of before there were videos have none.
  if (shows_videos(plan)) settings["video"] = VideoOptions(plan.video).fields().to_json();
  std::set<std::string> aside = kModelPlaces;
  aside.insert({"commit", "earlier_commits"});
  return {settings, aside};
}

void write_file(const fs::path& path, const std::string& text) {
  AtomicFile file(path);
  file.stream() << text;
  file.commit();
}

// The model, with the methods tried out on it.
std::unique_ptr<Engine> load_engine(const EvalFlags& flags, const EvalPlan& plan) {
  EngineOptions options = flags.engine;
  options.device = local_device(options.device);
  auto engine = Engine::load(options);
  for (const GridCell& cell : plan.cells) compared_pruners(cell.method, engine->pruner_context());
  return engine;
}

// Answers what is missing; 130 when stopped.
int answer(const EvalFlags& flags, const EvalPlan& plan, const Engine& engine, Interrupt& interrupt) {
  const Accounting accounting(engine, *model_source(flags.engine));
  const EvalProgress progress = progress_of(plan, true);
  Progress bar(progress.mine, progress.mine - progress.mine_missing, "answers");
  if (!PeakMemory().mib())
    std::cerr << "glimpse: peak memory is not measured: /proc/self/clear_refs cannot be written\n";
  const bool done = answer_rows(plan, engine, accounting, interrupt.arm(), [&](const std::string& note) {
    bar.step(note);
    if (note.find(": ") != note.npos) std::cerr << "glimpse: " << note << "\n";
  });
  interrupt.disarm();
  if (done) return 0;
  std::cerr << "\nglimpse: stopped with " << progress_of(plan).mine_missing
            << " answers missing; the same command goes on from here\n";
  return 130;
}

json evaluate(const EvalPlan& plan, const EvalFlags& flags, Interrupt& interrupt) {
  std::optional<Judge> judge;
  std::optional<ScoreCommand> command;
  size_t open = 0;
  const auto any = [&](bool (*needs)(const std::string&)) {
    return std::ranges::any_of(plan.tasks, needs, [](const EvalTask& task) { return task.task.score; });
  };
  if (any(needs_command)) command.emplace(flags.command);
  if (any(needs_judge)) {
    JudgeOptions options = flags.judge;
    if (const char* key = std::getenv(flags.judge_key.c_str())) options.key = key;
    judge.emplace(options, plan.out / "judged.jsonl");
    open = unjudged(plan, *judge);
    if (open > 0) std::cerr << "glimpse: " << open << " answers go to the judge\n";
  }
  std::optional<Progress> bar;
  if (open > 0) bar.emplace(open, 0, "judged");
  const auto step = [&] {
    if (bar) bar->step("");
  };
  const json results =
      make_results(plan, {judge ? &*judge : nullptr, command ? &*command : nullptr}, interrupt.arm(), step);
  interrupt.disarm();
  return results;
}

int run(EvalFlags flags, Interrupt& interrupt) {
  EvalPlan plan = make_plan(flags);
  flags.fetching.provide(flags.engine, interrupt);
  plan.video = video_options(plan.video, plan.bounds, *model_source(flags.engine));
  const EvalSettings settings = settings_of(flags, plan);
  check_folder(plan, settings, flags.overwrite);
  const EvalProgress before = flags.overwrite ? EvalProgress{.mine_missing = 1} : progress_of(plan, true);
  if (before.mine_missing < before.mine)
    std::cerr << "glimpse: " << before.mine - before.mine_missing << " of " << before.mine
              << " answers are there already\n";
  if (before.mine_missing > 0) {
    const auto engine = load_engine(flags, plan);
    const FolderClaim claim(plan, settings, flags.overwrite);
    if (const std::string& commit = claim.earlier_commit(); !commit.empty())
      std::cerr << "glimpse: the answers that are there were made by " << commit << ", this is " << kBuiltFrom
                << "; the results name both\n";
    if (const int status = answer(flags, plan, *engine, interrupt)) return status;
  }

  // The process that finds all answers there makes the results; of several that do, one after the other.
  const FileLock lock(plan.out / ".lock", LockKind::exclusive_wait);
  const EvalProgress progress = progress_of(plan);
  if (progress.missing > 0) {
    std::cerr << "glimpse: process " << plan.shard.rank << " of " << plan.shard.size << " is done; "
              << progress.missing << " of " << progress.total
              << " answers are still missing, the process that gives the last one makes the results\n";
    return 0;
  }
  json results;
  try {
    results = evaluate(plan, flags, interrupt);
  } catch (const Stopped&) {
    std::cerr << "\nglimpse: stopped; the same command goes on from here\n";
    return 130;
  }
  json about = read_json(plan.out / "eval.json");
  about["machine"] = read_json(plan.out / "machine.json");
  about["limit"] = flags.limit;
  if (!flags.judge.url.empty()) about["judge_model"] = flags.judge.model;
  results["about"] = about;
  write_file(plan.out / "results.json", results.dump(1) + "\n");
  write_file(plan.out / "table.csv", results_csv(results));
  write_file(plan.out / "report.html", results_page(plan, results, about, flags.gallery));
  if (!flags.masks_out.empty()) write_masks(plan, flags.masks_out);
  std::cout << results_table(results);
  std::cerr << "glimpse: wrote results.json, table.csv and report.html to " << plan.out.string() << "\n";
  return 0;
}

}  // namespace

std::function<int()> add_eval(CLI::App& app, Interrupt& interrupt) {
  auto flags = std::make_shared<EvalFlags>();
  app.add_option("-o,--out", flags->out, "folder of answers and results; an existing one is continued")
      ->required()
      ->type_name("DIR");
  app.add_option(
         "--task", flags->tasks,
         "tasks, comma-separated: YAML files, or names of those that come with the program: tiny (default), "
         "viscot, viscot_short, vstar, vstar_boxes, refcoco")
      ->type_name("TASKS")
      ->allow_extra_args(false);
  app.add_option(
         "--methods", flags->methods,
         "pruning methods or compositions, comma-separated; METHOD@BUDGET for one under a budget of its own; "
         "downsample: makes the picture so small that it has no more tokens "
         "(default: none,glimpse)")
      ->type_name("METHODS")
      ->allow_extra_args(false);
  app.add_option("--budgets", flags->budgets,
                 "visual tokens to keep, comma-separated: fractions up to 1, or numbers of tokens; own: the "
                 "method's own rule")
      ->type_name("BUDGETS")
      ->allow_extra_args(false)
      ->capture_default_str();
  app.add_option("--budget-from", flags->budget_from,
                 "keep as many tokens of each image as an earlier run did, instead of --budgets: an output "
                 "of infer, or DIR/METHOD@BUDGET of an evaluation in DIR")
      ->type_name("RUN");
  app.add_option("--data-root", flags->data_root,
                 "folder that the task's files of rows and images are relative to (default: the task file's)")
      ->type_name("DIR");
  app.add_option("--image-root", flags->image_root,
                 "folder of the images, instead of the task's; also <root>/cot/<set>/<image>")
      ->type_name("DIR");
  app.add_option("--sets", flags->sets, "only these sets of the task, comma-separated")
      ->type_name("SETS")
      ->allow_extra_args(false);
  app.add_option("--limit", flags->limit, "at most N rows of each set, evenly spaced (0: all)")
      ->type_name("N")
      ->check(CLI::NonNegativeNumber);
  app.add_flag("--overwrite", flags->overwrite, "start again what --out already holds");
  app.add_flag("--keep-going", flags->keep_going, "leave out rows that cannot be answered and go on");
  app.add_option("--gallery", flags->gallery, "rows whose pictures the report shows")
      ->type_name("N")
      ->check(CLI::Range(0, 100))
      ->capture_default_str();
  auto* const masks_only = app.add_flag("--masks-only", flags->masks_only,
                                        "compare what is kept with the rows' boxes, and answer nothing");
  app.add_option("--masks-out", flags->masks_out,
                 "write what was kept as pictures, a pixel per token: DIR/TASK/METHOD@BUDGET/SET/ID.png")
      ->type_name("DIR");
  const char* group = "Judge";
  app.add_option("--judge-url", flags->judge.url, "OpenAI-compatible server that scores free-form answers")
      ->type_name("URL")
      ->group(group);
  app.add_option("--judge-model", flags->judge.model, "the judge's model as that server calls it")
      ->type_name("NAME")
      ->group(group);
  app.add_option("--judge-key-env", flags->judge_key, "environment variable that holds the server's key")
      ->type_name("NAME")
      ->capture_default_str()
      ->group(group);
  app.add_option("--judge-jobs", flags->judge.jobs, "requests to the judge at a time")
      ->type_name("N")
      ->check(CLI::Range(1, 256))
      ->capture_default_str()
      ->group(group);
  app.add_option("--judge-tries", flags->judge.tries, "tries per answer before giving up")
      ->type_name("N")
      ->check(CLI::Range(1, 100))
      ->capture_default_str()
      ->group(group);
  app.add_option("--judge-timeout", flags->judge.timeout_s, "seconds to wait for a reply, per try")
      ->type_name("S")
      ->check(CLI::Range(0.1, 86400.0))
      ->capture_default_str()
      ->group(group);
  app.add_option("--score-command", flags->command.command,
                 "program, with its arguments, of tasks with score: command; it reads a JSON line for each "
                 "answer and writes {\"score\": x}, x from 0 to 1")
      ->type_name("TEXT")
      ->group(group);
  app.add_option("--score-timeout", flags->command.timeout_s, "seconds to wait for a line of it")
      ->type_name("S")
      ->check(CLI::Range(0.001, 86400.0))
      ->capture_default_str()
      ->group(group);
  app.add_option("-n,--max-new-tokens", flags->max_new_tokens, "longest answer, instead of the tasks' own")
      ->excludes(masks_only)
      ->type_name("N")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->group("Generation");
  add_image_flags(app, flags->bounds);
  flags->frames.add(app, flags->video.fields(), "Video", "", {"min_pixels", "max_pixels"});
  flags->fetching = add_model_flags(app, flags->engine);
  app.footer(
      "Example:\n"
      "  glimpse eval --methods none,random,glimpse,divprune --budgets 0.111,0.222 --out build/eval\n"
      "On several processes start it with torchrun or srun: each answers its share of the rows.");
  return [flags, &interrupt] { return run(*flags, interrupt); };
}

}  // namespace glimpse::app
