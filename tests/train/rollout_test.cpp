// Answers that are drawn for training: seeds, the likeliest tokens, the adapter's dropout.
#include "glimpse/train/rollout.h"

#include <ATen/core/grad_mode.h>

#include "builtin.h"
#include "glimpse/engine/prefill.h"
#include "golden_case.h"

#include <doctest/doctest.h>

using namespace glimpse;
using namespace glimpse::test;

namespace {

// The built-in model with an adapter that makes it unsure, and a prompt pruned to a few tokens.
struct Setup {
  std::unique_ptr<Vlm> model;
  std::optional<LoraAdapter> adapter;
  std::vector<Group> groups;
  std::vector<StartedPrompt> prompts;
  GroupLimits limits{3, {556}, 640};

  explicit Setup(double dropout, const std::vector<std::string>& targets = LoraOptions().targets,
                 int64_t first_layer = 0) {
    LoadOptions load;
    load.dtype = at::kFloat;
    load.device = test_device();
    model = load_vlm(tiny_dir() / "model", load);
    adapter = LoraAdapter::fresh(model->mutable_decoder(), {4, 8, dropout, targets, first_layer}, 1);
    const at::NoGradGuard no_grad;
    at::manual_seed(2);
    for (auto& [name, leaf] : adapter->parameters())
      if (name.find("lora_B") != name.npos) at::Tensor(leaf).normal_(0, 0.3);
    adapter->attach(model->mutable_decoder());
    add_prompt(0, {46, 47, 62, 63});
  }
  void add_prompt(size_t number, const std::vector<int64_t>& kept) {
    const at::NoGradGuard no_grad;
    const auto row = tiny_rows("rows.jsonl").at(number);
    Prompt prompt = model->prompt({user(row["question"], 1)}, {row_image(row)}, {});
    groups.push_back({prompt, kept, {}, {}});
    prompts.push_back(embed_prompt(*model, prompt, {}));
  }
  std::vector<std::vector<int64_t>> draw(uint64_t generator, RolloutOptions options, int64_t seed = 5) {
    at::manual_seed(generator);
    options.max_new_tokens = 12;
    roll_out(*model, groups, prompts, std::vector<int64_t>{seed}, limits, options);
    return groups[0].completions;
  }
  std::vector<GroupLoss> losses(std::span<const StartedPrompt> of, std::span<const Group> whose,
                                LogProb logprob) {
    return group_losses(*model, *adapter, of, whose, limits, {.logprob = logprob});
  }
  std::map<std::string, at::Tensor> taken_gradients() const {
    std::map<std::string, at::Tensor> gradients;
    for (const auto& [name, leaf] : adapter->parameters()) {
      gradients[name] = leaf.grad().clone();
      leaf.mutable_grad() = at::Tensor();
    }
    return gradients;
  }
};

}  // namespace

TEST_CASE("seeds say what is drawn, and the likeliest tokens need none") {
  Setup setup(0);
  const auto drawn = setup.draw(1, {});
  CHECK(drawn.size() == 4);
  CHECK(drawn == setup.draw(2, {}));
  CHECK(drawn != setup.draw(1, {}, 77));
  // What is the same so far runs once, where dropout does not make all of it differ.
  const RolloutOptions many{.completions = 16, .dropout = false}, apart{.completions = 16, .dropout = true};
  CHECK(setup.draw(1, many) == setup.draw(1, apart));
  const auto likeliest = setup.draw(1, {.completions = 2, .temperature = 0});
  CHECK(likeliest[0] == likeliest[1]);
  CHECK(likeliest == setup.draw(2, {.completions = 2, .temperature = 0}, 77));
}

TEST_CASE("the adapter's dropout acts while answers are drawn, and not where it is not to") {
  Setup setup(0.5);
  const auto drawn = setup.draw(1, {});
  CHECK(drawn == setup.draw(1, {}));
  CHECK(drawn != setup.draw(2, {}));  // the same seed of the row, another mask
  const auto without = setup.draw(1, {.dropout = false});
  CHECK(without == setup.draw(2, {.dropout = false}));
  CHECK(without == Setup(0).draw(3, {}));
  // Nothing of it is left behind.
  const at::NoGradGuard no_grad;
  Group& group = setup.groups[0];
  const auto first = [&] {
    return run_prompts(*setup.model, setup.prompts, {&group, 1}, setup.limits, LogProb::sampled, true)[0]
        .first;
  };
  CHECK(at::equal(first(), first()));
}

// Of six layers; the cut is behind the fourth.
TEST_CASE("what no branch touches runs once for adapter and base model") {
  const auto untouched = [](const std::vector<std::string>& targets, int64_t first_layer = 0) {
    const Setup setup(0, targets, first_layer);
    return setup.adapter->untouched_layers(setup.model->decoder());
  };
  CHECK(untouched({"q_proj"}) == 0);
  CHECK(untouched({"5.mlp.up_proj", "2.self_attn.k_proj"}) == 2);
  CHECK(untouched({"q_proj", "down_proj"}, 3) == 3);
  CHECK_THROWS_WITH_AS(untouched({"q_proj"}, 6), doctest::Contains("lora_first_layer: expected less than 6"),
                       Error);

  Setup setup(0, {"4.mlp.up_proj", "5.self_attn.q_proj"});
  REQUIRE(setup.adapter->untouched_layers(setup.model->decoder()) == 4);
  const StartedPrompt embedded = setup.prompts[0];
  const auto drawn = setup.draw(1, {});
  Group& group = setup.groups[0];
  group.scores = {1, 0, 0, 1};
  struct Result {
    GroupLoss loss;
    std::map<std::string, at::Tensor> gradients;
  };
  const auto result = [&](const StartedPrompt& prompt) {
    Result out{setup.losses({&prompt, 1}, {&group, 1}, LogProb::sampled)[0], {}};
    out.loss.total.backward();
    out.gradients = setup.taken_gradients();
    return out;
  };
  const Result whole = result(embedded);
  for (const int64_t layers : {1, 3, 4}) {
    INFO(layers << " layers");
    setup.prompts[0] =
        start_prompt(*setup.model, embed_prompt(*setup.model, group.prompt, {}), group.prompt, layers);
    const Result shared = result(setup.prompts[0]);
    CHECK(shared.loss.total.item<float>() == doctest::Approx(whole.loss.total.item<float>()).epsilon(1e-5));
    for (size_t i = 0; i < 4; ++i) {
      CHECK(difference(shared.loss.logps[i], whole.loss.logps[i]) < 1e-4);
      CHECK(difference(shared.loss.ref_logps[i], whole.loss.ref_logps[i]) < 1e-4);
    }
    for (const auto& [name, gradient] : shared.gradients)
      CHECK(difference(gradient, whole.gradients.at(name)) < 1e-4 * gradient.norm().item<double>() + 1e-7);
    CHECK(setup.draw(1, {}) == drawn);
  }
}

// Of different lengths, cut to different lengths, one of them with an answer that ends at once.
TEST_CASE("prompts that run together are as each alone") {
  Setup setup(0);
  setup.add_prompt(4, {3, 9});
  setup.add_prompt(8, {0, 5, 6, 20, 21, 30, 31});
  const std::vector<int64_t> seeds = {5, 77, 900};
  roll_out(*setup.model, setup.groups, setup.prompts, seeds, setup.limits, {.max_new_tokens = 12});
  for (size_t i = 0; i < seeds.size(); ++i) {
    Group alone{setup.groups[i].prompt, setup.groups[i].kept, {}, {}};
    roll_out(*setup.model, {&alone, 1}, {&setup.prompts[i], 1}, {&seeds[i], 1}, setup.limits,
             {.max_new_tokens = 12});
    CHECK(alone.completions == setup.groups[i].completions);
    setup.groups[i].scores = {1, 0, 0.5, 0};
  }
  setup.groups[1].completions[2] = {setup.limits.ends[0]};
  const GroupLoss far = group_losses(*setup.model, *setup.adapter, setup.prompts, setup.groups, setup.limits,
                                     {.kd_weight = 0})[0];
  CHECK(far.ref_logps.empty());  // the base model is not asked
  CHECK(far.kd.item<float>() == 0);
  for (const LogProb logprob : {LogProb::published, LogProb::sampled}) {
    const std::vector<GroupLoss> together = setup.losses(setup.prompts, setup.groups, logprob);
    at::Tensor total = at::zeros_like(together[0].total);
    for (const GroupLoss& loss : together) total = total + loss.total;
    total.backward();
    const auto gradients = setup.taken_gradients();
    for (size_t i = 0; i < seeds.size(); ++i) {
      INFO("prompt " << i);
      const GroupLoss alone = setup.losses({&setup.prompts[i], 1}, {&setup.groups[i], 1}, logprob)[0];
      CHECK(together[i].total.item<float>() == doctest::Approx(alone.total.item<float>()).epsilon(1e-4));
      if (i == 0)
        CHECK(far.reward.item<float>() == doctest::Approx(alone.reward.item<float>()).epsilon(1e-3));
      for (size_t c = 0; c < alone.logps.size(); ++c) {
        CHECK(difference(together[i].logps[c], alone.logps[c]) < 1e-4);
        CHECK(difference(together[i].ref_logps[c], alone.ref_logps[c]) < 1e-4);
      }
      alone.total.backward();  // adds to those before
    }
    for (const auto& [name, gradient] : setup.taken_gradients())
      CHECK(difference(gradient, gradients.at(name)) < 1e-3 * gradient.norm().item<double>() + 1e-7);
  }
}
