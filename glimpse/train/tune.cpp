#include "glimpse/train/tune.h"

#include <ATen/core/grad_mode.h>

#include "glimpse/engine/prefill.h"
#include "glimpse/io/model_dir.h"
#include "glimpse/prune/keep_rule.h"
#include "glimpse/prune/registry.h"

namespace glimpse {

namespace {

at::Tensor values(std::initializer_list<double> numbers) {
  return at::tensor(std::vector<double>(numbers), at::kDouble).to(at::kFloat);
}

double kept_share(const Group& group) {
  return static_cast<double>(group.kept.size()) / static_cast<double>(group.prompt.visual_rows.size());
}

// With the visual tokens that the boxes touch, or the first one.
Group boxed(const Example& example) {
  Group group{example.prompt, {}, {}, {}};
  const at::Tensor mask = example.reference.contiguous();
  for (int64_t i = 0; i < mask.numel(); ++i)
    if (mask.const_data_ptr<float>()[i] > 0.5f) group.kept.push_back(i);
  if (group.kept.empty()) group.kept.push_back(0);
  return group;
}

int64_t text_rows(const Prompt& prompt) {
  return std::ssize(prompt.ids) - std::ssize(prompt.visual_rows);
}

}  // namespace

TrainableAdapter::TrainableAdapter(Vlm& model, TuneOptions options, TuneSetup setup)
    : model_(model),
      options_(std::move(options)),
      base_model_(std::move(setup.base_model)),
      modules_(std::move(setup.modules)),
      group_options_(options_.group),
      adapter_(options_.adapter.empty()
                   ? LoraAdapter::fresh(model.mutable_decoder(), options_.lora, setup.seed)
                   : LoraAdapter::load(model.mutable_decoder(), resolve_model_dir(options_.adapter),
                                       options_.lora.dropout)),
      parameters_(adapter_.parameters()),
      vision_(model, std::move(setup.pictures)),
      scores_(options_, setup.judged) {
  const int64_t layers = model.decoder().config().layers;
  options_.check_for(layers);
  const int64_t cut =
      modules_ ? modules_->config.reduce_layer : default_cut_layer({layers, {}, 0, false, false});
  limits_ = {options_.cut_layer.value_or(cut), std::move(setup.ends), options_.max_seq_length,
             options_.recompute};
  group_options_.logprob = options_.logprob == "sampled" ? LogProb::sampled : LogProb::published;
  if (group_options_.logprob == LogProb::sampled)
    shared_layers_ = std::min(adapter_.untouched_layers(model_.decoder()), limits_.cut_layer + 1);
  adapter_.attach(model_.mutable_decoder());
}

StartedPrompt TrainableAdapter::started(const Example& example) {
  return start_prompt(model_, vision_.embedded(example.prompt), example.prompt, shared_layers_);
}

std::vector<std::string> TrainableAdapter::value_names() const {
  if (options_.stage == "sft") return {"answer_loss", "kept"};
  return {"kd_loss", "reward_loss", "reward", "reward_std", "completion_length", "kept"};
}

void TrainableAdapter::check_example(const Example& example) const {
  const Prompt& prompt = example.prompt;
  const auto length = std::ssize(prompt.ids);
  check(length <= options_.max_prompt, "its prompt has ", length, " tokens, more than max_prompt ",
        options_.max_prompt);
  check(example.reference.defined() || modules_,
        "it has no boxes, which say what of its picture stays, and there is no --new-modules to say it");
  // What the predictor keeps is not known yet: it gets the room that there is.
  const int64_t left = example.reference.defined() ? pruned_length(boxed(example)) : text_rows(prompt) + 1;
  check(left <= options_.max_pruned_prompt, "its pruned prompt has ", left,
        " tokens, more than max_pruned_prompt ", options_.max_pruned_prompt);
  if (options_.stage == "rl") scores_.check_row(*example.row);
}

Group TrainableAdapter::group_of(const Example& example) {
  if (example.reference.defined()) return boxed(example);
  return {example.prompt, predicted(example), {}, {}};
}

// What glimpse token and predictor keep, of these the likeliest that there is room for.
const std::vector<int64_t>& TrainableAdapter::predicted(const Example& example) {
  const auto [known, fresh] = predicted_.try_emplace(example.row);
  std::vector<int64_t>& kept = known->second;
  if (!fresh) return kept;
  invariant(modules_ != nullptr, "check_example() lets no row without boxes pass where there are no modules");
  Sequence sequence;
  sequence.prompt = example.prompt;
  sequence.pruners.push_back(std::make_shared<GlimpsePruner>(modules_, modules_->config.rule));
  Sequence* const sequences[] = {&sequence};
  const at::NoGradGuard no_grad;
  LoraAdapter::detach(model_.mutable_decoder());
  prefill(model_, sequences);
  adapter_.attach(model_.mutable_decoder());
  kept = sequence.kept;
  if (kept.empty()) kept.push_back(0);  // as where boxes touch none
  const int64_t room = options_.max_pruned_prompt - text_rows(example.prompt);
  if (std::ssize(kept) <= room) return kept;
  const at::Tensor likely = sequence.scores.index_select(0, at::tensor(kept, at::kLong));
  std::vector<int64_t> best = top_indices(likely, room);
  for (int64_t& token : best) token = kept[token];
  return kept = std::move(best);
}

void TrainableAdapter::score(const Example& example, Group& group) {
  std::vector<std::string> texts;
  for (const auto& ids : group.completions) texts.push_back(model_.tokenizer().decode(ids));
  group.scores = scores_.of(example, texts);
  sample_ = example.row->question + "\n";
  for (size_t i = 0; i < texts.size(); ++i) sample_ += concat("  ", group.scores[i], "  ", texts[i], "\n");
}

std::optional<ShownAnswer> TrainableAdapter::answer(const Example& example) {
  std::vector<Group> groups = {group_of(example)};
  RolloutOptions greedy = options_.rollout;
  greedy.completions = 1;
  greedy.temperature = 0;
  greedy.dropout = false;
  const std::vector<StartedPrompt> prompts = {started(example)};
  const std::vector<int64_t> seeds = {0};  // nothing is drawn
  roll_out(model_, groups, prompts, seeds, limits_, greedy);
  ShownAnswer shown{model_.tokenizer().decode(groups[0].completions[0]), {}};
  if (options_.stage == "rl") shown.score = scores_.of(example, {shown.text})[0];
  return shown;
}

void TrainableAdapter::learn_from_scores(std::span<const Example> examples, const Take& take) {
  std::vector<Group> groups;
  std::vector<StartedPrompt> prompts;
  std::vector<int64_t> seeds;
  for (const Example& example : examples) {
    groups.push_back(group_of(example));
    prompts.push_back(started(example));
    seeds.push_back(example.seed);
  }
  RolloutOptions drawn = options_.rollout;
  drawn.dropout = adapter_.dropout() != 0;
  roll_out(model_, groups, prompts, seeds, limits_, drawn);
  for (size_t i = 0; i < groups.size(); ++i) score(examples[i], groups[i]);
  in_parts(groups, [&](size_t first, size_t count) {
    const std::span<const Group> part(&groups[first], count);
    std::vector<Learned> learned;
    for (const GroupLoss& loss :
         group_losses(model_, adapter_, {&prompts[first], count}, part, limits_, group_options_)) {
      const Group& group = part[learned.size()];
      const Spread scores = spread(group.scores);
      double length = 0;
      for (const auto& ids : group.completions) length += static_cast<double>(ids.size());
      learned.push_back(
          {loss.total,
           values({loss.kd.item<double>(), loss.reward.item<double>(), scores.mean, scores.deviation,
                   length / static_cast<double>(group.completions.size()), kept_share(group)}),
           {}});
    }
    take(learned);
  });
}

void TrainableAdapter::learn_from_answers(std::span<const Example> examples, const Take& take) {
  std::vector<Group> groups;
  for (const Example& example : examples) {
    groups.push_back(group_of(example));
    groups.back().completions = {example.answer};
  }
  in_parts(groups, [&](size_t first, size_t count) {
    const std::span<const Group> part(&groups[first], count);
    std::vector<StartedPrompt> prompts;
    for (const Example& example : examples.subspan(first, count)) prompts.push_back(started(example));
    std::vector<Learned> learned;
    for (const auto& logps : completion_logps(model_, prompts, part, limits_, group_options_.logprob,
                                              /*prune=*/true, /*alike_once=*/false)) {
      const at::Tensor loss = -logps[0].mean();
      const Group& group = part[learned.size()];
      learned.push_back({loss, values({loss.item<double>(), kept_share(group)}), {}});
    }
    take(learned);
  });
}

void TrainableAdapter::learn(std::span<const Example> examples, const LossOptions&, const Take& take) {
  if (options_.stage == "rl")
    learn_from_scores(examples, take);
  else
    learn_from_answers(examples, take);
}

void TrainableAdapter::save(const std::filesystem::path& dir, at::ScalarType) const {
  adapter_.save(dir, base_model_);
}

}  // namespace glimpse
