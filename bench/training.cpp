#include "bench/training.h"

#include <ATen/core/grad_mode.h>

#include "glimpse/base/timer.h"
#include "glimpse/engine/engine.h"
#include "glimpse/train/forward.h"
#include "glimpse/train/modules.h"
#include "glimpse/train/optimiser.h"

namespace glimpse::bench {

namespace {

struct Measured {
  Samples step;
  double memory_mib = 0;
  double loss = 0;
};

}  // namespace

void time_training(const Question& question, int64_t answer, Rows& rows) {
  const at::AutoGradMode grad(true);
  EngineOptions options;
  options.model = (question.checkpoint / "model").string();
  LoadOptions load = load_options(options, read_json(question.checkpoint / "model" / "config.json"));
  load.config_overrides = read_json(question.checkpoint / "new_modules" / "config.json");
  const std::unique_ptr<Vlm> model = load_vlm(question.checkpoint / "model", load);
  const TrainableModules modules =
      TrainableModules::load(question.checkpoint / "new_modules", base_shape(*model), at::kCPU);
  Optimiser optimiser(modules.parameters(), {});

  Example example;
  example.prompt = make_prompt(question, *model);
  const at::Tensor ids = at::randint(0, 500, {answer}, at::kLong);
  example.answer.assign(ids.const_data_ptr<int64_t>(), ids.const_data_ptr<int64_t>() + answer);
  example.reference = (at::rand({question.visual}) < 0.05).to(at::kFloat);

  const auto step = [&](Backpropagation through, Measured& measured) {
    Memory::trim_and_reset_peak();
    const Timer timer;
    const auto loss = training_losses(*model, modules.modules(model->decoder().options(), modules.dropout()),
                                      std::span(&example, 1), {}, through);
    loss[0].total.backward();
    optimiser.step(0.0);  // the same parameters in every round
    measured.step.add(timer.ms());
    const Memory memory = Memory::now();
    measured.memory_mib = std::max(measured.memory_mib, memory.peak_mib - memory.files_mib);
    measured.loss = loss[0].total.item<double>();
  };
  Measured own, whole;
  for (int round = 0; round < question.rounds; ++round) {
    step(Backpropagation::glimpse_rows, own);
    say(concat("training step: ", own.step.values.back(), " ms, loss ", own.loss));
    step(Backpropagation::all_rows, whole);
    say(concat("training step through all rows: ", whole.step.values.back(), " ms, loss ", whole.loss));
  }
  rows.add({"training_step_ms",
            own.step.best(),
            "ms",
            own.step.median(),
            {},
            {{"all_rows", whole.step.best()}},
            concat("one example, ", answer, " answer tokens")});
  rows.add({"training_memory_mib",
            own.memory_mib,
            "MiB",
            {},
            {},
            {{"all_rows", whole.memory_mib}},
            "peak without mapped files, that is without weights"});
}

}  // namespace glimpse::bench
