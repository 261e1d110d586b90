#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>

#include "bench/answers.h"
#include "bench/first_token.h"
#include "bench/process.h"
#include "bench/selection.h"
#include "bench/serving.h"
#include "bench/training.h"
#include "bench/tuning.h"
#include "bench/vit_block.h"
#include "glimpse/base/check.h"
#include "glimpse/models/config.h"
#include "glimpse/nn/kernels.h"

namespace {

using namespace glimpse;
using namespace glimpse::bench;
namespace fs = std::filesystem;

struct Options {
  Question question;
  std::vector<std::string> only = {"limits",  "vit",         "flash",     "selection",
                                   "answers", "first_token", "questions", "batch"};
  std::vector<int64_t> sizes = {256, 1024};
  std::vector<std::string> peers;
  std::string prefix, json;
  bool append = false;
  int busy = 0;
  int64_t answer = 20, prompts = 1;
};

const std::vector<std::string> kParts = {
    "startup",     "cold",    "resident",  "limits", "vit",   "flash",    "selection", "answers",
    "first_token", "decoder", "questions", "batch",  "sizes", "training", "tune",      "kv"};

void greet(const Question& question) {
  const GemmPath path = bf16_gemm_path();
  std::printf("%s: %lld threads, %s weights, %s kernels, bf16 products %s\n", question.checkpoint.c_str(),
              static_cast<long long>(at::get_num_threads()), question.bits().c_str(), kernels::target_name(),
              path == GemmPath::native   ? "by libtorch"
              : path == GemmPath::paired ? "in pairs"
                                         : "widened to float32");
  std::fflush(stdout);
}

void run(const Options& options) {
  const at::NoGradGuard no_grad;
  const Question& question = options.question;
  set_threads(question.threads);
  const VisionShape vision = vision_shape(question);
  const fs::path config_file = question.checkpoint / "model" / "config.json";
  const nlohmann::json config = read_json(config_file), &text = text_config(config);
  const Grid grid = patch_grid(question, vision);
  greet(question);

  Rows rows;
  if (options.append) rows.continue_from(options.json);
  rows.set_prefix(options.prefix);
  if (options.busy > 0)
    rows.add({.name = "other_running_tasks",
              .value = static_cast<double>(options.busy),
              .unit = "tasks",
              .note = "the machine was busy: these numbers mean little"});
  // Written after every part, as large ones take long and may be stopped.
  const auto part = [&](const char* name, const auto& measure) {
    if (std::find(options.only.begin(), options.only.end(), name) == options.only.end()) return;
    measure();
    if (!options.json.empty()) rows.write(options.json);
  };
  Limits limits = Limits::earlier(rows);
  std::unique_ptr<Engine> loaded;
  const auto engine = [&]() -> const Engine& {
    if (!loaded) loaded = load_engine(question);
    return *loaded;
  };

  part("startup", [&] { time_startup(question, rows); });
  part("cold", [&] { time_cold_start(question, rows); });
  part("resident", [&] { measure_resident(question, rows); });
  part("limits", [&] {
    const int64_t hidden = text.at("hidden_size"), wide = text.at("intermediate_size");
    const bool small = hidden < 1024;
    const int64_t cube = small ? 1024 : 4096;
    limits = measure_limits(small ? 1024 : 2048,
                            {{question.visual + question.text, hidden, wide}, {cube, cube, cube}}, rows);
  });
  part("vit", [&] {
    if (vision.window_tokens > 0) time_vit_block(vision, grid, question.rounds, limits, rows);
  });
  part("flash", [&] {
    time_flash(decoder_config(text, config, config_file.string()), question.rounds, limits, rows);
  });
  part("kv", [&] { time_kv(decoder_config(text, config, config_file.string()), question.rounds, rows); });
  part("selection", [&] { time_selection(text.at("hidden_size"), vision, grid, question.rounds, rows); });

  if (question.bits() != "bf16") limits = limits.of_int8();
  part("answers", [&] { time_answers(question, limits, rows); });
  part("first_token", [&] {
    time_first_token(make_prompt(question, engine().model()), question.keep, question.rounds, engine(), rows);
  });
  part("decoder", [&] { time_decoder(question, engine(), limits, rows); });
  part("questions", [&] { time_questions(question, engine(), rows); });
  part("batch", [&] { time_batch(question, engine(), rows); });
  part("sizes", [&] { time_sizes(question, options.sizes, engine(), rows); });
  part("training", [&] { time_training(question, options.answer, rows); });
  part("tune", [&] { time_tuning(question, {.prompts = options.prompts, .answer = options.answer}, rows); });

  for (const std::string& peer : options.peers) {
    const size_t equals = peer.find('=');
    check(equals != std::string::npos, "--peer: expected NAME=FILE, got '", peer, "'");
    rows.add_peer(peer.substr(0, equals), peer.substr(equals + 1));
  }
  rows.print();
  if (!options.json.empty()) rows.write(options.json);
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  Question& question = options.question;
  CLI::App app{"Times glimpse on a checkpoint with random weights, beside the limits of this machine",
               "glimpse_bench"};
  app.option_defaults()->always_capture_default();
  app.add_option("--checkpoint", question.checkpoint, "folder that bench/make_checkpoint.py wrote")
      ->required();
  app.add_option("--threads", question.threads, "CPU threads")->check(CLI::Range(1, 4096));
  app.add_option("--weights", question.weights, "bits of the linear layers' weights")
      ->check(CLI::IsMember({"auto", "bf16", "int8", "int4"}));
  app.add_option("--sizes", options.sizes, "visual tokens of the growing images, ascending")
      ->check(CLI::Range(4, 65536));
  app.add_option("--visual", question.visual, "visual tokens")->check(CLI::Range(4, 65536));
  app.add_option("--frames", question.frames,
                 "frames of a video that has the visual tokens, two in a slice; 0: an image")
      ->check(CLI::Range(0, 4096));
  app.add_option("--text", question.text, "text tokens, the two around the image included")
      ->check(CLI::Range(3, 65536));
  app.add_option("--decode", question.decode, "decoding steps")->check(CLI::Range(1, 65536));
  app.add_option("--keep", question.keep, "share of the visual tokens that pruning keeps")
      ->check(CLI::Range(1e-6, 1.0));
  app.add_option("--rounds", question.rounds, "rounds; the best and the median are shown")
      ->check(CLI::Range(1, 1000));
  app.add_option("--only", options.only,
                 "parts to run; shares need limits, from this run or the one appended to")
      ->check(CLI::IsMember(kParts));
  app.add_option("--answer", options.answer,
                 "tokens of the answer that training learns, and of those that tune draws")
      ->check(CLI::Range(2, 65536));
  app.add_option("--prompts", options.prompts, "prompts of a step of tune, with four answers each")
      ->check(CLI::Range(1, 1024));
  app.add_option("--peer", options.peers,
                 "NAME=FILE: [{name, value, unit}] that somebody else's program wrote");
  app.add_option("--busy", options.busy, "other tasks that were running at the start, noted among the rows");
  app.add_option("--prefix", options.prefix, "put before the names of the rows");
  CLI::Option* const json = app.add_option("--json", options.json, "write the rows here");
  app.add_flag("--append", options.append, "behind those that are there, which also give the limits")
      ->needs(json);
  CLI11_PARSE(app, argc, argv);
  try {
    run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "glimpse_bench: %s\n", error.what());
    return 1;
  }
}
