#include "glimpse/engine/job.h"

#include <algorithm>

namespace glimpse {

Job::Job(const Engine& engine, const Request& request)
    : engine_(engine),
      max_new_tokens_(request.max_new_tokens),
      ignore_eos_(request.ignore_eos),
      on_text_(request.on_text),
      sampler_(request.sampling),
      decoder_(engine.model().tokenizer()) {
  check(max_new_tokens_ > 0, "max_new_tokens: ", max_new_tokens_, " is not positive");
  const Vlm& model = engine.model();
  sequence.prompt = model.prompt(request.messages, request.images, request.bounds);
  sequence.pruners =
      make_pruners(request.prune == "auto" ? engine.default_prune() : request.prune, engine.pruner_context());
  sequence.budget = request.budget;
  sequence.boxes = request.boxes;
  sequence.stop = request.stop;
  sequence.next_position = sequence.prompt.next_position;
  if (engine.prefix_cache())
    if (const auto end = prefix_end(sequence.prompt, sequence.pruners, model.decoder().config().layers))
      sequence.prefix_key = prefix_key(sequence, *end);
  seen_ = sequence.prompt.ids;
}

std::vector<at::Tensor> next_candidates(std::span<const std::unique_ptr<Job>> jobs,
                                        const at::Tensor& logits) {
  std::vector<at::Tensor> parts = {logits.argmax(1).to(at::kDouble).expand({2, -1})};
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

std::string Job::accept(const at::Tensor& candidates) {
  const int64_t id = sampler_.draw(candidates);
  const std::vector<int64_t>& stops = engine_.stop_ids();
  if (!ignore_eos_ && std::find(stops.begin(), stops.end(), id) != stops.end()) return "stop";
  answer_.ids.push_back(id);
  seen_.push_back(id);
  say(decoder_.push(id));
  return tokens_left() == 0 ? "length" : "";
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
  answer_.kv_bytes = sequence.cache.bytes();
}

void Job::finish(const std::string& reason) try {
  say(decoder_.flush());
  Answer& answer = answer_;
  answer.finish_reason = reason;
  answer.times = sequence.times;
  answer.images = sequence.prompt.images;
  answer.prompt_tokens = std::ssize(sequence.prompt.ids);
  answer.cached_tokens = sequence.cached_tokens;
  answer.question_rows = sequence.question_rows;
  answer.visual_tokens = std::ssize(sequence.prompt.visual_rows);
  answer.kept_tokens = std::ssize(sequence.kept);
  answer.keep.resize(answer.images.size());
  for (const int64_t token : sequence.kept)
    if (token < answer.visual_tokens) {
      const int64_t image = place_of(answer.images, token).image;
      answer.keep[image].push_back(token - answer.images[image].first);
    }
  if (sequence.scores.defined()) {
    const float* score = sequence.scores.const_data_ptr<float>();
    answer.scores.assign(score, score + sequence.scores.numel());
  }
  answer.pruning = nlohmann::json::array();
  for (const auto& pruner : sequence.pruners)
    answer.pruning.push_back({{"method", pruner->name()}, {"settings", pruner->settings()}});
  sequence = {};
  promise_.set_value(std::move(answer));
} catch (...) {
  fail(std::current_exception());  // of who listens to the text
}

void Job::fail(std::exception_ptr error) {
  sequence = {};
  promise_.set_exception(std::move(error));
}

}  // namespace glimpse
