#include "glimpse/train/tune.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cstdlib>

#include "glimpse/engine/prefill.h"
#include "glimpse/io/model_dir.h"
#include "glimpse/prune/registry.h"
#include "glimpse/score/answer_score.h"

namespace glimpse {

namespace {

at::Tensor values(std::initializer_list<double> numbers) {
  return at::tensor(std::vector<double>(numbers), at::kDouble).to(at::kFloat);
}

double kept_share(const Group& group) {
  return static_cast<double>(group.kept.size()) / static_cast<double>(group.prompt.visual_rows.size());
}

// Nothing in it trains.
at::Tensor embedded(const Vlm& model, const Prompt& prompt) {
  const at::NoGradGuard no_grad;
  return embed_prompt(model, prompt, {}).rows;
}

}  // namespace

TrainableAdapter::TrainableAdapter(Vlm& model, TuneOptions options, std::vector<int64_t> ends, uint64_t seed,
                                   const std::filesystem::path& judged, std::string base_model)
    : model_(model),
      options_(std::move(options)),
      base_model_(std::move(base_model)),
      group_options_(options_.group),
      adapter_(options_.adapter.empty()
                   ? LoraAdapter::fresh(model.mutable_decoder(), options_.lora, seed)
                   : LoraAdapter::load(model.mutable_decoder(), resolve_model_dir(options_.adapter),
                                       options_.lora.dropout)),
      parameters_(adapter_.parameters()) {
  const int64_t layers = model.decoder().config().layers;
  options_.check_for(layers);
  limits_ = {options_.cut_layer.value_or(default_cut_layer({layers, {}, 0, false, false})), std::move(ends),
             options_.max_seq_length};
  group_options_.logprob = options_.logprob == "sampled" ? LogProb::sampled : LogProb::published;
  adapter_.attach(model_.mutable_decoder());
  if (options_.judge.url.empty()) return;
  JudgeOptions asked = options_.judge;
  if (const char* key = std::getenv(options_.judge_key_env.c_str())) asked.key = key;
  check_judge(asked);
  std::filesystem::create_directories(judged.parent_path());
  judge_.emplace(asked, judged);
}

std::vector<std::string> TrainableAdapter::value_names() const {
  if (options_.stage == "sft") return {"answer_loss", "kept"};
  return {"kd_loss", "reward_loss", "reward", "reward_std", "completion_length", "kept"};
}

void TrainableAdapter::check_example(const Example& example) const {
  const Group group = group_of(example);
  const auto length = std::ssize(group.prompt.ids);
  const int64_t left = pruned_length(group);
  check(length <= options_.max_prompt, "its prompt has ", length, " tokens, more than max_prompt ",
        options_.max_prompt);
  check(left <= options_.max_pruned_prompt, "its pruned prompt has ", left,
        " tokens, more than max_pruned_prompt ", options_.max_pruned_prompt);
  if (options_.stage == "sft") return;
  for (const std::string& name : scores_of(*example.row)) {
    const auto& known = answer_score_names();
    check(std::ranges::count(known, name) > 0, "its score '", name, "' is unknown");
    check(!needs_judge(name) || judge_, "its score ", name,
          " asks a judge: name a server with --judge-url and --judge-model");
  }
}

// With the visual tokens that the boxes touch, or the first one.
Group TrainableAdapter::group_of(const Example& example) const {
  check(example.reference.defined(), "training: a row has no boxes, which say what of its picture stays");
  Group group{example.prompt, {}, {}, {}};
  const at::Tensor mask = example.reference.contiguous();
  for (int64_t i = 0; i < mask.numel(); ++i)
    if (mask.const_data_ptr<float>()[i] > 0.5f) group.kept.push_back(i);
  if (group.kept.empty()) group.kept.push_back(0);
  return group;
}

void TrainableAdapter::score(const Example& example, Group& group) {
  const TrainRow& row = *example.row;
  const RightAnswer right{{row.answer}, row.boxes};
  group.scores.assign(group.completions.size(), 0.0);
  std::vector<JudgeQuestion> questions;
  std::vector<size_t> asked;
  sample_ = row.question + "\n";
  std::vector<std::string> texts;
  for (size_t i = 0; i < group.completions.size(); ++i) {
    texts.push_back(model_.tokenizer().decode(group.completions[i]));
    for (const std::string& name : scores_of(row)) {
      if (const auto known = answer_score(name, right, texts[i], example.seen)) {
        group.scores[i] += *known;
      } else {
        questions.push_back({row.question, row.answer, texts[i]});
        asked.push_back(i);
      }
    }
  }
  if (!questions.empty()) {
    const auto replies = judge_->scores(questions, {}, [] {});
    for (size_t i = 0; i < asked.size(); ++i) group.scores[asked[i]] += replies[i].value_or(0.0);
  }
  for (size_t i = 0; i < texts.size(); ++i) sample_ += concat("  ", group.scores[i], "  ", texts[i], "\n");
}

std::vector<Learned> TrainableAdapter::learn_from_scores(std::span<const Example> examples) {
  std::vector<Group> groups;
  std::vector<at::Tensor> rows;
  std::vector<int64_t> seeds;
  for (const Example& example : examples) {
    groups.push_back(group_of(example));
    rows.push_back(embedded(model_, example.prompt));
    seeds.push_back(example.seed);
  }
  roll_out(model_, groups, rows, seeds, limits_, options_.rollout);
  std::vector<Learned> out;
  for (size_t i = 0; i < groups.size(); ++i) {
    score(examples[i], groups[i]);
    const GroupLoss loss = group_loss(model_, adapter_, rows[i], groups[i], limits_, group_options_);
    const Spread scores = spread(groups[i].scores);
    double length = 0;
    for (const auto& ids : groups[i].completions) length += static_cast<double>(ids.size());
    out.push_back(
        {loss.total,
         values({loss.kd.item<double>(), loss.reward.item<double>(), scores.mean, scores.deviation,
                 length / static_cast<double>(groups[i].completions.size()), kept_share(groups[i])}),
         {}});
  }
  return out;
}

Learned TrainableAdapter::learn_from_answer(const Example& example) {
  Group group = group_of(example);
  group.completions = {example.answer};
  const at::Tensor rows = embedded(model_, example.prompt);
  const at::Tensor loss =
      -completion_logps(model_, rows, group, limits_, group_options_.logprob, true)[0].mean();
  return {loss, values({loss.item<double>(), kept_share(group)}), {}};
}

std::vector<Learned> TrainableAdapter::learn(std::span<const Example> examples, const LossOptions&) {
  if (options_.stage == "rl") return learn_from_scores(examples);
  std::vector<Learned> out;
  for (const Example& example : examples) out.push_back(learn_from_answer(example));
  return out;
}

void TrainableAdapter::save(const std::filesystem::path& dir, at::ScalarType) const {
  adapter_.save(dir, base_model_);
}

}  // namespace glimpse
