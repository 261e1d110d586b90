#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>

#include "bench/answers.h"
#include "bench/selection.h"
#include "bench/serving.h"
#include "bench/training.h"
#include "bench/vit_block.h"
#include "glimpse/base/check.h"
#include "glimpse/nn/kernels.h"

namespace {

using namespace glimpse;
using namespace glimpse::bench;

struct Options {
  Question question;
  std::vector<std::string> only = {"limits", "vit", "answers", "serving"};
  std::vector<int64_t> sizes = {256, 1024};
  std::vector<std::string> peers;
  std::string json;
  int busy = 0;
  int64_t answer = 20;
};

void run(const Options& options) {
  const at::NoGradGuard no_grad;
  const Question& question = options.question;
  at::set_num_threads(question.threads);
  const VisionShape vision = vision_shape(question);
  const nlohmann::json config = read_json(question.checkpoint / "model" / "config.json");
  const auto wanted = [&](const char* part) {
    return std::find(options.only.begin(), options.only.end(), part) != options.only.end();
  };
  const GemmPath path = bf16_gemm_path();
  std::printf("%s: %lld threads, %s kernels, bf16 products %s\n", question.checkpoint.c_str(),
              static_cast<long long>(at::get_num_threads()), kernels::target_name(),
              path == GemmPath::native   ? "by libtorch"
              : path == GemmPath::paired ? "in pairs"
                                         : "widened to float32");
  std::fflush(stdout);

  Rows rows;
  if (options.busy > 0)
    rows.add({.name = "other_running_tasks",
              .value = static_cast<double>(options.busy),
              .unit = "tasks",
              .note = "the machine was busy: these numbers mean little"});
  Limits limits;
  if (wanted("limits")) {
    const nlohmann::json& text = text_config(config);
    const int64_t hidden = text.at("hidden_size"), wide = text.at("intermediate_size");
    const bool small = hidden < 1024;
    const int64_t cube = small ? 1024 : 4096;
    limits = measure_limits(small ? 1024 : 2048,
                            {{question.visual + question.text, hidden, wide}, {cube, cube, cube}}, rows);
  }
  if (wanted("vit") && vision.window_tokens > 0)
    time_vit_block(vision, patch_grid(question, vision.merge), question.rounds, limits, rows);
  if (wanted("selection"))
    time_selection(question.visual, config.at("hidden_size"), question.keep, vision,
                   patch_grid(question, vision.merge), question.rounds, rows);
  if (wanted("answers")) time_answers(question, limits, rows);
  if (wanted("decoder")) time_decoder(question, limits, rows);
  if (wanted("serving")) time_serving(question, options.sizes, limits, rows);
  if (wanted("training")) time_training(question, options.answer, rows);

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
  app.add_option("--sizes", options.sizes, "visual tokens of the serving part's growing images")
      ->check(CLI::Range(4, 65536));
  app.add_option("--visual", question.visual, "visual tokens")->check(CLI::Range(4, 65536));
  app.add_option("--text", question.text, "text tokens, the two around the image included")
      ->check(CLI::Range(3, 65536));
  app.add_option("--decode", question.decode, "decoding steps")->check(CLI::Range(1, 65536));
  app.add_option("--keep", question.keep, "share of the visual tokens that pruning keeps")
      ->check(CLI::Range(1e-6, 1.0));
  app.add_option("--rounds", question.rounds, "rounds; the best and the median are shown")
      ->check(CLI::Range(1, 1000));
  app.add_option("--only", options.only, "parts to run; without limits there are no shares")
      ->check(CLI::IsMember({"limits", "vit", "selection", "answers", "decoder", "serving", "training"}));
  app.add_option("--answer", options.answer, "tokens of the answer that training learns")
      ->check(CLI::Range(1, 65536));
  app.add_option("--peer", options.peers,
                 "NAME=FILE: [{name, value, unit}] that somebody else's program wrote");
  app.add_option("--busy", options.busy, "other tasks that were running at the start, noted among the rows");
  app.add_option("--json", options.json, "write the rows here");
  CLI11_PARSE(app, argc, argv);
  try {
    run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "glimpse_bench: %s\n", error.what());
    return 1;
  }
}
