#include "glimpse/engine/job.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "glimpse/engine/kept_grids.h"

namespace glimpse {

namespace {

SamplingOptions for_choice(SamplingOptions options, int64_t choice) {
  if (options.seed) *options.seed += choice;
  return options;
}

}  // namespace

Job::Job(const Engine& engine, const Request& request)
    : engine_(engine),
      max_new_tokens_(request.max_new_tokens),
      stop_ids_(request.ignore_eos ? std::vector<int64_t>() : request.stop_ids.value_or(engine.stop_ids())),
      logprobs_(request.logprobs),
      logits_(request.logits),
      on_text_(request.on_text),
      events_(request.events),
      sampler_(request.sampling),
      decoder_(engine.model().tokenizer()),
      stop_strings_(request.stop_strings) {
  check(max_new_tokens_ > 0, "max_new_tokens: ", max_new_tokens_, " is not positive");
  check(logprobs_.value_or(0) >= 0, "logprobs: ", logprobs_.value_or(0), " is negative");
  const Vlm& model = engine.model();
  sequence.prompt = request.ids.empty() ? model.prompt(request.messages, request.media, request.bounds)
                                        : model.prompt(request.ids, request.patches);
  sequence.pruners = request.pruners
                         ? *request.pruners
                         : make_pruners(request.prune == "auto" ? engine.default_prune() : request.prune,
                                        engine.pruner_context());
  sequence.budget = request.budget;
  sequence.boxes = request.boxes;
  sequence.stop = request.stop;
  sequence.kv = engine.kv();
  sequence.next_position = sequence.prompt.next_position;
  if (PrefixCache* cache = engine.prefix_cache()) choose_prefix(*cache, request.reuse);
  seen_ = sequence.prompt.ids;
}

// Which image prefix the sequence takes or leaves, and whether shortcuts give way to it.
void Job::choose_prefix(PrefixCache& cache, Reuse reuse) {
  const Vlm& model = engine_.model();
  const auto choose = [&] {
    if (const auto end = prefix_end(sequence.prompt, sequence.pruners, model.decoder().config().layers)) {
      sequence.prefix_key = prefix_key(sequence, *end, model.weights_version(), cache.seed());
      cache.fetch(*sequence.prefix_key);
    }
  };
  PrunerChain lasting;
  std::ranges::copy_if(sequence.pruners, std::back_inserter(lasting),
                       [](const auto& pruner) { return !pruner->is_shortcut(); });
  if (lasting.empty() || lasting.size() == sequence.pruners.size() || sequence.prompt.segments.empty())
    return choose();
  answer_.shortcut = true;
  if (reuse == Reuse::never) return choose();
  const PrunerChain all = std::exchange(sequence.pruners, std::move(lasting));
  choose();
  // With a shortcut, and what is kept of the encoder, a further question costs a fourth of a prefix or less.
  constexpr int64_t before_prefix = 4;
  if (sequence.prefix_key && (reuse == Reuse::always || cache.find(*sequence.prefix_key) ||
                              cache.times_wanted(*sequence.prefix_key) >= before_prefix)) {
    answer_.shortcut = false;
    return;
  }
  sequence.prefix_key.reset();
  sequence.pruners = all;
  choose();
}

Job::Job(const Job& first, const Request& request, int64_t choice)
    : engine_(first.engine_),
      max_new_tokens_(first.max_new_tokens_),
      stop_ids_(first.stop_ids_),
      logprobs_(first.logprobs_),
      logits_(first.logits_),
      on_text_(request.on_text),
      events_(request.events),
      sampler_(for_choice(request.sampling, choice)),
      decoder_(engine_.model().tokenizer()),
      stop_strings_(request.stop_strings),
      seen_(first.seen_) {
  sequence.stop = request.stop;
  sequence.next_position = first.sequence.next_position;
  answer_.shortcut = first.answer_.shortcut;
}

std::vector<at::Tensor> next_candidates(std::span<Job* const> jobs, const at::Tensor& logits) {
  std::vector<at::Tensor> parts = {
      at::stack({logits.argmax(1).to(at::kDouble), logits.amax(1).to(at::kDouble)})};
  std::vector<std::pair<int64_t, int64_t>> columns;  // first and number of each job's
  int64_t next = std::ssize(jobs);
  for (int64_t i = 0; i < std::ssize(jobs); ++i) {
    if (jobs[i]->greedy()) {
      columns.emplace_back(i, 1);
      continue;
    }
    parts.push_back(jobs[i]->candidates(logits[i]));
    columns.emplace_back(next, parts.back().size(1));
    next += columns.back().second;
  }
  const at::Tensor all = at::cat(parts, 1).cpu();
  std::vector<at::Tensor> out;
  for (const auto& [first, count] : columns) out.push_back(all.narrow(1, first, count));
  return out;
}

std::string Job::accept(const at::Tensor& candidates, const at::Tensor& logits) {
  int64_t id = 0;
  try {
    id = sampler_.draw(candidates);
  } catch (const Error& error) {
    fail_as(error.kind(), error.what(), where_numbers_end());
  }
  if (logits_)
    answer_.logits.push_back(logits.to(at::kCPU, at::kFloat, /*non_blocking=*/false, /*copy=*/true));
  if (std::ranges::find(stop_ids_, id) != stop_ids_.end()) {
    answer_.end_id = id;
    return "stop";
  }
  answer_.ids.push_back(id);
  seen_.push_back(id);
  const TokenInfo token = info_of(id, logits);
  if (logprobs_) answer_.tokens.push_back(token);
  const std::string text = stop_strings_.push(decoder_.push(id));
  say(text);
  if (events_) events_->push(NextToken{token, text});
  return stop_strings_.found() ? "stop" : tokens_left() == 0 ? "length" : "";
}

TokenInfo Job::info_of(int64_t id, const at::Tensor& logits) const {
  TokenInfo out{id, {}, {}};
  if (!logprobs_) return out;
  const at::Tensor all = logits.log_softmax(0).cpu();
  const auto [values, ids] = all.topk(std::min(*logprobs_, all.size(0)));
  out.logprob = all[id].item<float>();
  for (int64_t i = 0; i < ids.size(0); ++i)
    out.top.emplace_back(ids[i].item<int64_t>(), values[i].item<float>());
  return out;
}

// Where, as far as the caches show it: a layer's keys are made from the hidden states that enter it.
std::string Job::where_numbers_end() const {
  const auto& layers = sequence.cache.layers;
  for (size_t layer = 0; layer < layers.size(); ++layer)
    if (layers[layer].length() > 0 && !layers[layer].keys().isfinite().all().item<bool>())
      return layer == 0
                 ? "; the embeddings or layer 0 gave values that are not finite, as with damaged weights"
                 : concat("; layer ", layer - 1, " or layer ", layer,
                          "'s projections gave the first values that are not finite, as with damaged "
                          "weights or in bf16 arithmetic that does not reach (try --dtype fp32)");
  return "; the last layer or the head gave values that are not finite, as with damaged weights";
}

int64_t Job::tokens_left() const {
  const int64_t context = engine_.model().max_positions() - sequence.next_position;
  return std::max<int64_t>(0, std::min(max_new_tokens_ - std::ssize(answer_.ids), context));
}

size_t Job::patch_bytes() const {
  size_t sum = 0;
  for (const Patches& image : sequence.prompt.patches) sum += image.pixel_values.nbytes();
  return sum;
}

void Job::say(const std::string& text) {
  answer_.text += text;
  if (on_text_ && !text.empty()) on_text_(text);
}

void Job::prefilled() {
  Answer& answer = answer_;
  answer.kv_bytes = sequence.cache.bytes();
  answer.times = sequence.times;
  answer.segments = sequence.prompt.segments;
  answer.prompt_tokens = std::ssize(sequence.prompt.ids);
  answer.cached_tokens = sequence.cached_tokens;
  answer.question_rows = sequence.question_rows;
  answer.visual_tokens = std::ssize(sequence.prompt.visual_rows);
  answer.kept_tokens = std::ssize(sequence.kept);
  answer.left = sequence.left;
  answer.keep = by_segment(answer.segments, sequence.kept);
  if (sequence.scores.defined()) {
    const float* score = sequence.scores.const_data_ptr<float>();
    answer.scores.assign(score, score + sequence.scores.numel());
  }
  answer.pruning = nlohmann::json::array();
  for (const auto& pruner : sequence.pruners)
    answer.pruning.push_back({{"method", pruner->name()}, {"settings", pruner->settings()}});
  if (events_) events_->push(PrefillDone{std::make_shared<Answer>(answer)});
}

void Job::finish(const std::string& reason) try {
  for (const auto& fork : std::exchange(forks, {})) fork->finish(reason);
  const std::string text = stop_strings_.push(decoder_.flush()) + stop_strings_.flush();
  say(text);
  answer_.finish_reason = reason;
  answer_.times = sequence.times;
  sequence = {};
  if (events_) events_->push(Ended{std::make_shared<Answer>(answer_), text, nullptr});
  promise_.set_value(std::move(answer_));
} catch (...) {
  fail(std::current_exception());  // of who listens to the text
}

void Job::fail(std::exception_ptr error) {
  for (const auto& fork : std::exchange(forks, {})) fork->fail(error);
  sequence = {};
  if (events_) events_->push(Ended{nullptr, "", error});
  promise_.set_exception(std::move(error));
}

}  // namespace glimpse
