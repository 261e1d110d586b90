// Stage 1 of GlimpsePrune+ against the reference's own numbers: log-probabilities, losses and gradients of
// given completions with given scores, one optimiser step and a curve of four.
#include "glimpse/train/group.h"

#include <ATen/core/grad_mode.h>

#include "glimpse/engine/prefill.h"
#include "glimpse/train/optimiser.h"
#include "golden/counts.h"
#include "golden/inputs.h"

using namespace glimpse;
using test::difference;
using test::GoldenCase;

namespace {

// The limits of the golden data's README.
constexpr double kLogits = 5e-4, kLogps = 2e-4, kLoss = 1e-5, kGradient = 2e-3, kCurve = 1e-4;

double scalar(const at::Tensor& value) {
  return value.item<double>();
}

std::vector<GoldenCase> group_cases() {
  std::vector<GoldenCase> cases;
  for (GoldenCase& golden : test::cases_below(test::golden_dir(), "grpo"))
    if (golden.has("completion_ids")) cases.push_back(std::move(golden));
  return cases;
}

GoldenCase sibling(const GoldenCase& golden, const std::string& name) {
  return GoldenCase(golden.folder / "grpo" / (name + ".json"));
}

Group group_of(const GoldenCase& golden, const Vlm& model) {
  test::Inputs inputs(golden, golden.info["inputs"]);
  Group group{model.prompt(golden.integers("input_ids"), std::move(inputs.patches)), {}, {}, {}};
  const std::vector<int64_t> mask = golden.integers("keep_mask");
  for (size_t i = 0; i < mask.size(); ++i)
    if (mask[i]) group.kept.push_back(static_cast<int64_t>(i));
  const at::Tensor ids = golden["completion_ids"].to(at::kLong), scores = golden["scores"].to(at::kDouble);
  for (int64_t b = 0; b < ids.size(0); ++b) {
    group.completions.emplace_back();
    for (int64_t t = 0; t < ids.size(1); ++t)
      if (const auto id = ids[b][t].item<int64_t>(); id >= 0) group.completions.back().push_back(id);
    group.scores.push_back(scalar(scores[b].sum()));
  }
  return group;
}

GroupLimits limits_of(const GoldenCase& golden) {
  const auto config =
      read_json(golden.folder / golden.info["new_modules"].get<std::string>() / "config.json");
  return {config.at("reduce_layer"), {golden.info["eos"].get<int64_t>()}, golden.info["max_seq_length"]};
}

struct Setup {
  std::unique_ptr<Vlm> model;
  LoraAdapter adapter;

  explicit Setup(const GoldenCase& golden, double dropout = 0)
      : model(test::load_model(golden, at::kFloat)),
        adapter(LoraAdapter::load(model->mutable_decoder(),
                                  golden.folder / golden.info["adapter"].get<std::string>(), dropout)) {
    adapter.attach(model->mutable_decoder());
  }
  GroupLoss loss(const GoldenCase& golden, GroupOptions options = {}, bool recompute = true) {
    const Group group = group_of(golden, *model);
    GroupLimits limits = limits_of(golden);
    limits.recompute = recompute;
    return group_losses(*model, adapter, embedded(group), {&group, 1}, limits, options)[0];
  }
  std::vector<StartedPrompt> embedded(const Group& group) const {
    const at::NoGradGuard no_grad;
    return {embed_prompt(*model, group.prompt, {})};
  }
};

// Of the gradients, the largest relative error in L2; and of their norms, where `golden` has no more.
void compare_gradients(const LoraAdapter& adapter, const GoldenCase& golden) {
  double squares = 0;
  for (const auto& [name, leaf] : adapter.parameters()) {
    INFO(name);
    const at::Tensor gradient = leaf.grad().defined() ? leaf.grad().cpu() : at::zeros_like(leaf).cpu();
    const double norm = scalar(gradient.norm()),
                 expected = scalar(golden["grad_l2/base_model.model." + name]);
    squares += norm * norm;
    CHECK(std::abs(norm - expected) <= kGradient * expected + 1e-9);
    const std::string key = "grad/base_model.model." + name;
    if (golden.has(key)) CHECK(scalar((gradient - golden[key]).norm()) <= kGradient * expected + 1e-9);
  }
  CHECK(std::sqrt(squares) == doctest::Approx(scalar(golden["grad_norm"])).epsilon(kGradient));
}

void run_case(const GoldenCase& golden) {
  Setup setup(golden);
  const Group group = group_of(golden, *setup.model);
  const GroupLimits limits = limits_of(golden);
  const at::Tensor positions = group.prompt.position_ids.to(at::kInt);
  CHECK(at::equal(positions, golden["position_ids"]));
  const at::Tensor mask = golden["completion_mask"].to(at::kLong);
  for (size_t b = 0; b < group.completions.size(); ++b)
    CHECK(counting_tokens(group, b, limits) == mask[b].sum().item<int64_t>());

  {
    const at::NoGradGuard no_grad;
    const auto logits = [&](bool prune) {
      return group_logits(*setup.model, setup.embedded(group), {&group, 1}, limits, LogProb::published,
                          prune)[0];
    };
    const GroupLogits on = logits(true);
    CHECK(difference(on.first, golden["first_logits"]) < kLogits);
    if (golden.has("completion0_logits"))
      CHECK(difference(on.behind[0], golden["completion0_logits"]) < kLogits);
    LoraAdapter::detach(setup.model->mutable_decoder());
    const GroupLogits off = logits(false);
    CHECK(difference(off.first, golden["ref_first_logits"]) < kLogits);
    setup.adapter.attach(setup.model->mutable_decoder());
  }

  const GroupLoss loss = setup.loss(golden);
  for (size_t b = 0; b < group.completions.size(); ++b) {
    INFO("completion " << b);
    const auto row = static_cast<int64_t>(b), count = loss.logps[b].size(0);
    CHECK(difference(loss.logps[b], golden["logps"][row].narrow(0, 0, count)) < kLogps);
    CHECK(difference(loss.ref_logps[b], golden["ref_logps"][row].narrow(0, 0, count)) < kLogps);
    CHECK(std::abs(loss.advantages[b] - scalar(golden["advantages"][row])) < 1e-5);
  }
  CHECK(std::abs(scalar(loss.kd) - scalar(golden["kd_loss"])) < kLoss);
  CHECK(std::abs(scalar(loss.reward) - scalar(golden["reward_loss"])) < kLoss);
  CHECK(std::abs(scalar(loss.total) - scalar(golden["loss"])) < kLoss);
  loss.total.backward();
  compare_gradients(setup.adapter, golden);
}

// The loss of a step's groups, its gradients added up.
double accumulate(Setup& setup, const std::vector<GoldenCase>& groups) {
  double sum = 0;
  for (const GoldenCase& group : groups) {
    const at::Tensor total = setup.loss(group).total / static_cast<double>(groups.size());
    total.backward();
    sum += scalar(total);
  }
  return sum;
}

double surrogate(const GroupLoss& loss) {
  double sum = 0;
  for (size_t b = 0; b < loss.logps.size(); ++b) sum -= loss.advantages[b] * scalar(loss.logps[b].mean());
  return sum / static_cast<double>(loss.logps.size());
}

std::vector<GoldenCase> step_cases() {
  std::vector<GoldenCase> cases;
  for (GoldenCase& golden : test::cases_below(test::golden_dir(), "grpo"))
    if (golden.has("curve")) cases.push_back(std::move(golden));
  return cases;
}

std::vector<GoldenCase> groups_of(const GoldenCase& step) {
  std::vector<GoldenCase> groups;
  for (const std::string name : step.info["groups"]) groups.push_back(sibling(step, name));
  return groups;
}

OptimiserOptions adamw(double max_grad_norm) {
  OptimiserOptions options;
  options.weight_decay = 0;
  options.max_grad_norm = max_grad_norm;
  return options;
}

}  // namespace

TEST_CASE("golden groups of completions: log-probabilities, losses, gradients") {
  const std::vector<GoldenCase> cases = group_cases();
  for (const GoldenCase& golden : cases) {
    INFO(golden.name << ": " << golden.info["what"].get<std::string>());
    run_case(golden);
  }
  test::check_count("group cases", std::ssize(cases), 5);
}

TEST_CASE("golden step over groups") {
  for (const GoldenCase& step : step_cases()) {
    const std::vector<GoldenCase> groups = groups_of(step);
    Setup setup(groups[0]);
    accumulate(setup, groups);
    compare_gradients(setup.adapter, step);
    std::map<std::string, at::Tensor> gradients;
    for (const auto& [name, leaf] : setup.adapter.parameters()) gradients[name] = leaf.grad().cpu().clone();
    Optimiser optimiser(setup.adapter.parameters(), adamw(0));
    optimiser.step(1e-4);
    for (const auto& [name, leaf] : setup.adapter.parameters()) {
      INFO(name);
      const at::Tensor off = (leaf.detach().cpu() - step["after_step/base_model.model." + name]).abs();
      const at::Tensor large = gradients[name].abs() > 1e-6;
      CHECK(scalar((off * large).max()) < 2e-6);
      CHECK(scalar(off.max()) < 2e-5);
    }
    for (size_t i = 0; i < groups.size(); ++i)
      CHECK(std::abs(scalar(setup.loss(groups[i]).total) -
                     scalar(step["loss_after_step"][static_cast<int64_t>(i)])) < kLoss);
  }
}

TEST_CASE("golden curve over groups") {
  for (const GoldenCase& step : step_cases()) {
    const std::vector<GoldenCase> groups = groups_of(step);
    Setup setup(groups[0]);
    Optimiser optimiser(setup.adapter.parameters(), adamw(1));
    const at::Tensor curve = step["curve"];
    const auto count = std::ssize(groups);
    for (int64_t i = 0; i < curve.size(0); ++i) {
      INFO("step " << i);
      for (int64_t g = 0; g < count; ++g) {
        const GroupLoss loss = setup.loss(groups[g]);
        CHECK(std::abs(scalar(loss.kd) - scalar(curve[i][3 * g])) < kCurve);
        CHECK(std::abs(scalar(loss.reward) - scalar(curve[i][3 * g + 1])) < kCurve);
        CHECK(std::abs(surrogate(loss) - scalar(curve[i][3 * g + 2])) < kCurve);
      }
      CHECK(std::abs(accumulate(setup, groups) - scalar(curve[i][3 * count])) < kCurve);
      CHECK(optimiser.step(step.info["curve_lr"]) ==
            doctest::Approx(scalar(curve[i][3 * count + 1])).epsilon(1e-3));
    }
  }
}

// Without dropout these run once.
TEST_CASE("answers that are there twice") {
  const GoldenCase golden = group_cases().at(0);
  Setup setup(golden);
  Group group = group_of(golden, *setup.model);
  const size_t count = group.completions.size();
  for (size_t i = 0; i < count; ++i) {
    group.completions.push_back(group.completions[i]);
    group.scores.push_back(group.scores[i]);
  }
  const GroupLimits limits = limits_of(golden);
  const std::vector<StartedPrompt> prompts = setup.embedded(group);
  const GroupLoss loss = group_losses(*setup.model, setup.adapter, prompts, {&group, 1}, limits, {})[0];
  const auto each = [&](LogProb logprob, bool prune) {
    return completion_logps(*setup.model, prompts, {&group, 1}, limits, logprob, prune,
                            /*alike_once=*/false)[0];
  };
  const std::vector<at::Tensor> all = each(LogProb::published, true);
  REQUIRE(loss.logps.size() == 2 * count);
  double kd = 0;
  for (size_t i = 0; i < 2 * count; ++i) {
    INFO("completion " << i);
    CHECK(difference(loss.logps[i], all[i]) < 1e-5);
    CHECK(loss.advantages[i] == loss.advantages[i % count]);
    const at::Tensor off = loss.ref_logps[i] - all[i];
    kd += scalar((off.exp() - off - 1).mean()) / static_cast<double>(2 * count);
  }
  CHECK(scalar(loss.kd) == doctest::Approx(GroupOptions().kd_weight * kd).epsilon(1e-4));
  // Its gradients are those of all: what is there once, of a loss of which it is a part twice.
  loss.total.backward();
  std::map<std::string, at::Tensor> once;
  for (const auto& [name, leaf] : setup.adapter.parameters()) {
    once[name] = leaf.grad().clone();
    leaf.mutable_grad() = at::Tensor();
  }
  const std::vector<at::Tensor> again = each(LogProb::published, true);
  at::Tensor total = at::zeros_like(loss.total);
  for (size_t i = 0; i < 2 * count; ++i) {
    const at::Tensor off = loss.ref_logps[i] - again[i];
    total = total + ((-(again[i] - again[i].detach()).exp() * loss.advantages[i]).mean() +
                     GroupOptions().kd_weight * (off.exp() - off - 1).mean()) /
                        static_cast<double>(2 * count);
  }
  total.backward();
  for (const auto& [name, leaf] : setup.adapter.parameters())
    CHECK(difference(leaf.grad(), once.at(name)) < 1e-4 * scalar(leaf.grad().norm()) + 1e-9);
}

TEST_CASE("what is kept of layers for their gradients makes no difference") {
  for (const GoldenCase& golden : group_cases()) {
    INFO(golden.name);
    Setup again(golden, 0.2), kept(golden, 0.2);
    at::manual_seed(7);
    again.loss(golden, {}, true).total.backward();
    at::manual_seed(7);
    kept.loss(golden, {}, false).total.backward();
    const auto expected = again.adapter.parameters();
    for (const auto& [name, leaf] : kept.adapter.parameters()) {
      INFO(name);
      const at::Tensor &gradient = leaf.grad(), &other = expected.at(name).grad();
      REQUIRE(gradient.defined() == other.defined());
      if (gradient.defined()) CHECK(difference(gradient, other) < 1e-5 * scalar(other.norm()) + 1e-9);
    }
  }
}

// By finite differences along the gradient, with dropout, whose numbers a recomputed layer draws again: the
// reward's value stays as it is, so that what has its gradient stands in for it.
TEST_CASE("gradients of groups, with dropout and as they were sampled") {
  for (const GoldenCase& golden : group_cases()) {
    if (golden.name != "g0") continue;
    for (const LogProb logprob : {LogProb::published, LogProb::sampled}) {
      Setup setup(golden, 0.2);
      GroupOptions options;
      options.logprob = logprob;
      const auto loss = [&] {
        at::manual_seed(7);
        return setup.loss(golden, options);
      };
      loss().total.backward();
      const auto leaves = setup.adapter.parameters();
      double squares = 0;
      for (const auto& [name, leaf] : leaves)
        squares += leaf.grad().defined() ? scalar(leaf.grad().square().sum()) : 0;
      const double norm = std::sqrt(squares), step = 2e-2;
      const auto value_at = [&](double offset) {
        const at::NoGradGuard no_grad;
        for (const auto& [name, leaf] : leaves)
          if (leaf.grad().defined()) leaf.data().add_(leaf.grad(), offset / norm);
        const at::AutoGradMode with_gradients(true);  // else there is no dropout
        const GroupLoss there = loss();
        for (const auto& [name, leaf] : leaves)
          if (leaf.grad().defined()) leaf.data().sub_(leaf.grad(), offset / norm);
        return scalar(there.kd) + surrogate(there);
      };
      CHECK((value_at(step) - value_at(-step)) / (2 * step) == doctest::Approx(norm).epsilon(0.02));
    }
  }
}
