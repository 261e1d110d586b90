#include "bench/tuning.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <limits>

#include "glimpse/base/timer.h"
#include "glimpse/engine/prefill.h"
#include "glimpse/nn/index_tensor.h"
#include "glimpse/train/group.h"
#include "glimpse/train/optimiser.h"
#include "glimpse/train/rollout.h"

namespace glimpse::bench {

namespace {

struct Measured {
  Samples step;
  double memory_mib = std::numeric_limits<double>::infinity();
  double gradient = 0;  // its norm, which without pruning is the same both ways but for dropout
};

class Tuning {
 public:
  Tuning(const Question& question, const TuningWork& work)
      : work_(work),
        model_(loaded(question)),
        held_mib_(held_memory()),
        adapter_(LoraAdapter::fresh(model_->mutable_decoder(), {}, 1)),
        optimiser_(adapter_.parameters(), {}),
        prompt_(make_prompt(question, *model_)) {
    adapter_.attach(model_->mutable_decoder());
    limits_.cut_layer = read_json(question.checkpoint / "new_modules" / "config.json").at("reduce_layer");
    limits_.max_seq_length = std::ssize(prompt_.ids) + work.answer;  // every token counts
    rollout_.completions = work.completions;
    rollout_.max_new_tokens = work.answer - 1;
    const auto visual = std::ssize(prompt_.visual_rows);
    const auto count = static_cast<int64_t>(std::max(1.0, question.keep * static_cast<double>(visual)));
    kept_ = list_of(at::randperm(visual, at::kLong).narrow(0, 0, count));
    std::ranges::sort(kept_);
  }

  void step(Measured& measured, bool reference) {
    Memory::trim_and_reset_peak();
    const Timer timer;
    at::manual_seed(0);
    if (reference)
      each_alone();
    else
      together();
    measured.gradient = optimiser_.step(0.0);  // the same parameters in every round
    measured.step.add(timer.ms());
    const Memory memory = Memory::now();
    // The least of the rounds: what the allocator still holds of the other way's step belongs to that.
    measured.memory_mib = std::min(measured.memory_mib, memory.peak_mib - memory.files_mib - held_mib_);
  }

 private:
  static std::unique_ptr<Vlm> loaded(const Question& question) {
    EngineOptions options;
    options.model = (question.checkpoint / "model").string();
    LoadOptions load = load_options(options, read_json(question.checkpoint / "model" / "config.json"));
    load.config_overrides = read_json(question.checkpoint / "new_modules" / "config.json");
    return load_vlm(question.checkpoint / "model", load);
  }

  static double held_memory() {
    Memory::trim_and_reset_peak();
    return Memory::now().own_mib;
  }

  EmbeddedPrompt embedded() const {
    const at::NoGradGuard no_grad;
    return embed_prompt(*model_, prompt_, {});
  }
  Group fresh_group() const { return {prompt_, kept_, {}, {}}; }
  // Some are good, some are not.
  double score(int64_t completion) const { return completion % 2 == 0 ? 1 : 0; }

  // As TrainableAdapter does it.
  void together() {
    std::vector<Group> groups(static_cast<size_t>(work_.prompts), fresh_group());
    std::vector<StartedPrompt> prompts;
    std::vector<int64_t> seeds;
    for (size_t i = 0; i < groups.size(); ++i) {
      prompts.push_back(embedded());
      seeds.push_back(static_cast<int64_t>(1000 * i));
    }
    roll_out(*model_, groups, prompts, seeds, limits_, rollout_);
    for (Group& group : groups)
      for (int64_t c = 0; c < work_.completions; ++c) group.scores.push_back(score(c));
    in_parts(groups, [&](size_t first, size_t count) {
      at::Tensor total = at::zeros({});
      for (const GroupLoss& loss :
           group_losses(*model_, adapter_, {&prompts[first], count}, {&groups[first], count}, limits_, {}))
        total = total + loss.total;
      total.backward();
    });
  }

  void each_alone() {
    RolloutOptions one = rollout_;
    one.completions = 1;
    std::vector<double> scores;
    for (int64_t c = 0; c < work_.completions; ++c) scores.push_back(score(c));
    const std::vector<double> gains = advantages(scores);
    for (int64_t i = 0; i < work_.prompts; ++i)
      for (int64_t c = 0; c < work_.completions; ++c) {
        std::vector<Group> group = {fresh_group()};
        const std::vector<StartedPrompt> prompts = {embedded()};
        roll_out(*model_, group, prompts, std::vector<int64_t>{1000 * i + c}, limits_, one);
        const std::vector<int64_t>& ids = group[0].completions[0];
        at::Tensor base;
        {
          const at::NoGradGuard no_grad;
          LoraAdapter::detach(model_->mutable_decoder());
          base = whole_logps(prompts[0].rows, ids);
          adapter_.attach(model_->mutable_decoder());
        }
        const at::Tensor lp = whole_logps(prompts[0].rows, ids), off = base - lp;
        const GroupOptions weights;
        const at::Tensor reward = -(lp - lp.detach()).exp() * gains[static_cast<size_t>(c)],
                         kd = off.exp() - off - 1;
        const at::Tensor loss = (weights.reward_weight * reward + weights.kd_weight * kd).mean() /
                                static_cast<double>(work_.completions);
        loss.backward();
      }
  }

  // [prompt | completion] through all layers, every row of it.
  at::Tensor whole_logps(const at::Tensor& rows, const std::vector<int64_t>& ids) const {
    const Decoder& decoder = model_->decoder();
    const at::Device device = decoder.options().device();
    const int64_t count = std::ssize(ids), before = rows.size(0), next = prompt_.next_position;
    const at::Tensor tokens = index_tensor(ids, device);
    at::Tensor x = at::cat({rows, decoder.embed(tokens.narrow(0, 0, count - 1))});
    const at::Tensor places =
        at::arange(next, next + count - 1, at::kLong).expand({prompt_.position_ids.size(0), -1});
    KvCache cache(decoder.config().layers);
    RaggedBatch batch{{{&cache, x.size(0)}},
                      model_->rope(to_device(at::cat({prompt_.position_ids, places}, 1), device))};
    for (int64_t layer = 0; layer < decoder.config().layers; ++layer) {
      x = decoder.layer(layer, x, batch);
      cache.layers[layer] = LayerCache();  // autograd keeps what the gradients need
    }
    const at::Tensor logits = decoder.logits(x.narrow(0, before - 1, count));
    return logits.log_softmax(1).gather(1, tokens.unsqueeze(1)).squeeze(1);
  }

  const TuningWork work_;
  const std::unique_ptr<Vlm> model_;
  const double held_mib_;
  const LoraAdapter adapter_;
  Optimiser optimiser_;
  const Prompt prompt_;
  GroupLimits limits_;
  RolloutOptions rollout_;
  std::vector<int64_t> kept_;
};

}  // namespace

void time_tuning(const Question& question, const TuningWork& work, Rows& rows) {
  const at::AutoGradMode grad(true);
  Tuning tuning(question, work);
  Measured own, reference;
  for (int round = 0; round < question.rounds; ++round) {
    tuning.step(own, false);
    say(concat("tuning step: ", own.step.values.back(), " ms, gradient ", own.gradient));
    tuning.step(reference, true);
    say(concat("tuning step the reference's way: ", reference.step.values.back(), " ms, gradient ",
               reference.gradient));
  }
  const auto rate = [&](double ms) { return 1000.0 * static_cast<double>(work.prompts) / ms; };
  const std::string about =
      concat(work.prompts, " prompts, each ", work.completions, " completions of ", work.answer, " tokens");
  rows.add({.name = "tuning_samples_per_s",
            .value = rate(own.step.best()),
            .unit = "samples/s",
            .median = rate(own.step.median()),
            .peers = {{"reference_way", rate(reference.step.best())}},
            .note = about});
  rows.add({.name = "tuning_memory_mib",
            .value = own.memory_mib,
            .unit = "MiB",
            .peers = {{"reference_way", reference.memory_mib}},
            .note = "peak above what the process holds once the model is loaded"});
  rows.add({.name = "tuning_speedup",
            .value = reference.step.best() / own.step.best(),
            .unit = "x",
            .goal = at_least(2.5)});
  rows.add({.name = "tuning_memory_share",
            .value = own.memory_mib / reference.memory_mib,
            .unit = "share",
            .goal = at_most(0.5)});
}

}  // namespace glimpse::bench
