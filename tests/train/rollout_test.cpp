// Answers that are drawn for training: seeds, the likeliest tokens, the adapter's dropout.
#include "glimpse/train/rollout.h"

#include <ATen/core/grad_mode.h>

#include "builtin.h"
#include "glimpse/engine/prefill.h"

#include <doctest/doctest.h>

using namespace glimpse;
using namespace glimpse::test;

namespace {

// The built-in model with an adapter that makes it unsure, and one prompt pruned to a few tokens.
struct Setup {
  std::unique_ptr<Vlm> model;
  std::optional<LoraAdapter> adapter;
  std::vector<Group> groups;
  std::vector<EmbeddedPrompt> prompts;
  GroupLimits limits{3, {556}, 640};

  explicit Setup(double dropout) {
    LoadOptions load;
    load.dtype = at::kFloat;
    load.device = test_device();
    model = load_vlm(tiny_dir() / "model", load);
    adapter = LoraAdapter::fresh(model->mutable_decoder(), {.r = 4, .alpha = 8, .dropout = dropout}, 1);
    const at::NoGradGuard no_grad;
    at::manual_seed(2);
    for (auto& [name, leaf] : adapter->parameters())
      if (name.find("lora_B") != name.npos) at::Tensor(leaf).normal_(0, 0.3);
    adapter->attach(model->mutable_decoder());
    const auto row = tiny_rows("rows.jsonl").at(0);
    Prompt prompt = model->prompt({user(row["question"], 1)}, {row_image(row)}, {});
    groups.push_back({prompt, {46, 47, 62, 63}, {}, {}});
    prompts.push_back(embed_prompt(*model, prompt, {}));
  }
  std::vector<std::vector<int64_t>> draw(uint64_t generator, RolloutOptions options, int64_t seed = 5) {
    at::manual_seed(generator);
    options.max_new_tokens = 12;
    roll_out(*model, groups, prompts, std::vector<int64_t>{seed}, limits, options);
    return groups[0].completions;
  }
};

}  // namespace

TEST_CASE("seeds say what is drawn, and the likeliest tokens need none") {
  Setup setup(0);
  const auto drawn = setup.draw(1, {});
  CHECK(drawn.size() == 4);
  CHECK(drawn == setup.draw(2, {}));
  CHECK(drawn != setup.draw(1, {}, 77));
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
    return run_prompt(*setup.model, setup.prompts[0], group, setup.limits, LogProb::sampled, true).first;
  };
  CHECK(at::equal(first(), first()));
}
