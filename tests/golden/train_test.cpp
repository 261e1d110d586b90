// Every training case of the golden data: losses, gradients, one optimiser step and a curve of six, against
// full back-propagation by the reference. Gradients here go through the glimpse and answer rows only.
#include "glimpse/engine/engine.h"
#include "glimpse/train/forward.h"
#include "glimpse/train/modules.h"
#include "glimpse/train/optimiser.h"
#include "golden/counts.h"
#include "golden/inputs.h"

using namespace glimpse;
using test::difference;
using test::GoldenCase;

namespace {

constexpr double kLoss = 1e-4, kGradient = 2e-3, kLogits = 1e-3;  // the golden data's README

// Sample `index` of a case: prompt and answer are told apart by the labels.
Example example(const GoldenCase& golden, const Vlm& model, size_t index) {
  const std::string prefix = index == 0 ? "" : "sample" + std::to_string(index) + ".";
  test::Inputs inputs(golden, golden.info["samples"][index]["inputs"]);
  const std::vector<int64_t> ids = golden.integers(prefix + "input_ids");
  const std::vector<int64_t> labels = golden.integers(prefix + "labels");
  std::vector<int64_t> prompt, answer;
  for (size_t i = 0; i < ids.size(); ++i) (labels[i] < 0 ? prompt : answer).push_back(ids[i]);
  return {model.prompt(prompt, std::move(inputs.patches)), answer,
          golden[prefix + "ref_mask"].to(at::kFloat)};
}

struct Setup {
  std::unique_ptr<Vlm> model;
  TrainableModules modules;
  std::vector<Example> examples;

  explicit Setup(const GoldenCase& golden, std::unique_ptr<Vlm> own = nullptr)
      : model(own ? std::move(own) : test::load_model(golden, at::kFloat)),
        modules(TrainableModules::load(golden.folder / golden.info["new_modules"].get<std::string>(),
                                       base_shape(*model), test::test_device())) {
    for (size_t i = 0; i < golden.info["samples"].size(); ++i) examples.push_back(example(golden, *model, i));
  }

  std::vector<ExampleLoss> losses(std::span<const Example> of,
                                  Backpropagation through = Backpropagation::glimpse_rows) const {
    return training_losses(*model, modules.modules(model->decoder().options(), 0.0), of, LossOptions(),
                           through);
  }
};

double relative(const at::Tensor& got, const at::Tensor& expected) {
  const at::Tensor wide = expected.to(at::kCPU, at::kDouble);
  return ((got.to(at::kCPU, at::kDouble) - wide).norm() / wide.norm().clamp_min(1e-12)).item<double>();
}

double scalar(const at::Tensor& value) {
  return value.item<double>();
}

void compare_loss(const ExampleLoss& loss, const GoldenCase& golden) {
  CHECK(std::abs(scalar(loss.le) - scalar(golden["le_loss"])) < kLoss);
  CHECK(std::abs(scalar(loss.loc) - scalar(golden["loc_loss"])) < kLoss);
  CHECK(std::abs(scalar(loss.total) - scalar(golden["total_loss"])) < kLoss);
  CHECK(difference(loss.dice.detach(), golden["dice"]) < kLoss);
  CHECK(difference(loss.bce.detach(), golden["bce"]) < kLoss);
  CHECK(difference(loss.vip_logits.detach(), golden["vip_logits"]) < kLogits);
}

void compare_gradients(const TrainableModules& modules, const GoldenCase& golden) {
  std::vector<std::string> without = golden.info["parameters_without_gradient"];
  for (const auto& [name, parameter] : modules.parameters()) {
    INFO(name);
    if (std::find(without.begin(), without.end(), name) != without.end()) {
      CHECK_FALSE(parameter.grad().defined());
      continue;
    }
    REQUIRE(parameter.grad().defined());
    const double norm = scalar(golden["grad_l2/" + name]);
    CHECK(std::abs(parameter.grad().norm().item<double>() - norm) <= kGradient * norm + 1e-9);
    if (golden.has("grad/" + name)) CHECK(relative(parameter.grad(), golden["grad/" + name]) < kGradient);
  }
}

void run_case(const GoldenCase& golden) {
  const Setup setup(golden);
  const auto& parameters = setup.modules.parameters();
  const ExampleLoss loss = setup.losses(std::span(setup.examples).first(1))[0];
  compare_loss(loss, golden);
  loss.total.backward();
  compare_gradients(setup.modules, golden);

  OptimiserOptions options;
  options.max_grad_norm = 0;
  Optimiser optimiser(parameters, options);
  const double norm = optimiser.step(1e-4);
  CHECK(norm == doctest::Approx(scalar(golden["grad_norm"])).epsilon(kGradient));
  for (const auto& [name, parameter] : parameters)
    // Adam's first step is lr * sign(gradient): where a gradient is nearly zero its sign is rounding.
    if (golden.has("after_step/" + name)) {
      INFO(name);
      const at::Tensor off = (parameter.detach().cpu() - golden["after_step/" + name]).abs();
      CHECK(off.max().item<double>() <= 2.1e-4);
      CHECK(off.gt(2e-6).to(at::kFloat).mean().item<double>() < 0.01);
    }
}

void run_curve(const GoldenCase& golden) {
  const Setup setup(golden);
  OptimiserOptions options;
  Optimiser optimiser(setup.modules.parameters(), options);
  const at::Tensor expected = golden["curve"];
  const auto count = static_cast<int64_t>(setup.examples.size());
  for (int64_t step = 0; step < expected.size(0); ++step) {
    const std::vector<ExampleLoss> losses = setup.losses(setup.examples);  // a ragged batch of all samples
    at::Tensor total;
    for (int64_t i = 0; i < count; ++i) {
      CHECK(scalar(losses[i].le) == doctest::Approx(scalar(expected[step][2 * i])).epsilon(1e-3));
      CHECK(scalar(losses[i].loc) == doctest::Approx(scalar(expected[step][2 * i + 1])).epsilon(1e-3));
      total = total.defined() ? total + losses[i].total : losses[i].total;
    }
    (total / count).backward();
    CHECK(optimiser.step(1e-4) == doctest::Approx(scalar(expected[step][2 * count])).epsilon(5e-3));
  }
}

template <class Run>
void each_training_case(Run run) {
  int count = 0;
  for (const GoldenCase& golden : test::model_cases())
    if (golden.has("labels")) {
      INFO(golden.name << ": " << golden.info["what"].get<std::string>());
      run(golden);
      ++count;
    }
  test::check_count("training cases", count, 4);
}

}  // namespace

// Stage 2 of GlimpsePrune+: the same step on a base that an adapter was merged into.
TEST_CASE("golden training case on a merged base") {
  int count = 0;
  for (const GoldenCase& merged : test::cases_below(test::golden_dir(), "grpo")) {
    if (!merged.info.contains("case")) continue;
    const GoldenCase step(merged.folder / (merged.info["case"].get<std::string>() + ".json"));
    const Setup setup(step, test::load_model(merged, at::kFloat, {}, /*merged=*/true));
    const ExampleLoss loss = setup.losses(std::span(setup.examples).first(1))[0];
    compare_loss(loss, merged);
    loss.total.backward();
    for (const auto& [name, parameter] : setup.modules.parameters())
      if (merged.has("grad/" + name)) {
        INFO(name);
        CHECK(relative(parameter.grad(), merged["grad/" + name]) < kGradient);
      }
    ++count;
  }
  test::check_count("merged training cases", count, 1);
}

TEST_CASE("golden training cases: losses, gradients, one step") {
  each_training_case(run_case);
}

TEST_CASE("golden training curves, samples as a ragged batch") {
  each_training_case(run_curve);
}

TEST_CASE("gradients through the glimpse rows equal those through all rows") {
  each_training_case([](const GoldenCase& golden) {
    const Setup some(golden), all(golden);
    some.losses(some.examples)[0].total.backward();
    all.losses(all.examples, Backpropagation::all_rows)[0].total.backward();
    for (const auto& [name, parameter] : some.modules.parameters()) {
      INFO(name);
      CHECK(relative(parameter.grad(), all.modules.parameters().at(name).grad()) < kGradient);
    }
  });
}
