// The parts of Qwen3-VL that the golden data has numbers for of their own.
#include <ATen/core/grad_mode.h>

#include "glimpse/engine/engine.h"
#include "glimpse/models/qwen3_vit.h"
#include "glimpse/train/forward.h"
#include "glimpse/train/group.h"
#include "golden/counts.h"

using namespace glimpse;
using test::difference;
using test::GoldenCase;

namespace {

std::filesystem::path folder() {
  return test::golden_dir() / "qwen3_vl_tiny";
}

// The model, modules, prompt and kept tokens of a case.
struct Setup {
  GoldenCase golden;
  std::unique_ptr<Vlm> model = test::load_model(golden, at::kFloat);
  test::Inputs inputs{golden, golden.info["inputs"]};
  Group group{model->prompt(golden.integers("input_ids"), inputs.patches),
              {},
              {golden.integers("generated_ids")},
              {}};

  explicit Setup(const char* name) : golden(folder() / name) {
    const std::vector<int64_t> mask = golden.integers("keep_mask");
    for (size_t i = 0; i < mask.size(); ++i)
      if (mask[i]) group.kept.push_back(static_cast<int64_t>(i));
  }
};

}  // namespace

TEST_CASE("learned positions, interpolated to the grid of an image") {
  int64_t run = 0;
  for (const GoldenCase& golden : test::golden_cases(folder() / "inputs")) {
    if (!golden.has("position_rows")) continue;
    INFO(golden.name);
    const auto base = golden.folder / golden.info["model"].get<std::string>();
    const Qwen3Vit vit =
        Qwen3Vit::load(read_json(base / "config.json")["vision_config"], open_weights(base), at::kFloat);
    const std::vector<int64_t> size = golden.integers("image_grid_thw");
    const Grid grid{1, static_cast<int>(size[1]), static_cast<int>(size[2])};
    const at::Tensor& expected = golden["position_rows"];
    CHECK(difference(vit.position_rows(grid, 0, expected.size(0)), expected) < 1e-5);
    // Part by part, and the same in every slice of a video.
    CHECK(difference(vit.position_rows(grid, 3, 8), expected.narrow(0, 3, 8)) < 1e-5);
    const Grid video{3, grid.h, grid.w};
    CHECK(difference(vit.position_rows(video, expected.size(0), expected.size(0)), expected) < 1e-5);
    ++run;
  }
  test::check_count("tables of positions", run, 2);
}

TEST_CASE("training gives the predictor what inference gives it, features for later layers included") {
  for (const char* name :
       {"glimpse/g01_image.json", "glimpse/g02_video.json", "glimpse/g11_tied_image.json"}) {
    const Setup setup(name);
    INFO(name);
    const auto modules =
        GlimpseModules::load(setup.golden.folder / setup.golden.info["new_modules"].get<std::string>(),
                             base_shape(*setup.model), setup.model->decoder().options());
    const at::Tensor reference = setup.golden["keep_mask"].to(at::kFloat).to(test::test_device());
    const std::vector<Example> examples(2, {setup.group.prompt, {1, 2, 3}, reference});
    for (const Backpropagation through : {Backpropagation::glimpse_rows, Backpropagation::all_rows})
      for (const ExampleLoss& loss : training_losses(*setup.model, modules, examples, {}, through))
        CHECK(difference(loss.vip_logits.detach(), setup.golden["vip_logits"]) < 1e-3 * test::fp32_slack());
  }
}

TEST_CASE(
    "prompts in tuning carry the features for later layers through the cut and without the dropped tokens") {
  const at::NoGradGuard no_grad;
  const Setup cut("glimpse/g01_image.json");
  const auto first = [](const Setup& setup, int64_t layer) {
    const std::vector<StartedPrompt> prompts = {embed_prompt(*setup.model, setup.group.prompt, {})};
    return run_prompts(*setup.model, prompts, {&setup.group, 1}, {layer, {}, 640}, LogProb::sampled,
                       /*prune=*/true)[0]
        .first;
  };
  CHECK(difference(first(cut, 4), cut.golden["first_logits"]) < 5e-4 * test::fp32_slack());

  // What follows in the published distribution never saw the dropped tokens: the golden answer to such a
  // prompt.
  for (const char* name : {"cut0/c01_image.json", "cut0/c02_video.json"}) {
    const Setup absent(name);
    INFO(name);
    const std::vector<StartedPrompt> prompts = {embed_prompt(*absent.model, absent.group.prompt, {})};
    const at::Tensor behind =
        group_logits(*absent.model, prompts, {&absent.group, 1}, {4, {}, 640}, LogProb::published, true)[0]
            .behind[0];
    const at::Tensor top = std::get<0>(behind.topk(2, 1));
    CHECK(difference(top, absent.golden["step_top2"].narrow(0, 1, top.size(0))) < 5e-4 * test::fp32_slack());
  }
}
