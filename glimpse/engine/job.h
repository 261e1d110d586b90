#pragma once

#include <future>

#include "glimpse/engine/engine.h"
#include "glimpse/engine/stop_strings.h"

namespace glimpse {

/// One request on its way to its answer.
class Job {
 public:
  /// Makes prompt and pruners. Errors: what is wrong with the request.
  Job(const Engine& engine, const Request& request);
  /// Another answer to the same request, which goes on from where the prefill of `first` will end. `choice`
  /// is its number: it is added to the seed.
  Job(const Job& first, const Request& request, int64_t choice);

  /// Takes the next token: one of its `candidates` (see Sampler), or of a greedy job's the likeliest. Its row
  /// of `logits` [V] is only looked at if log-probabilities or logits were asked for. Returns why the answer
  /// ends with it, or "". Error (internal) if they are no numbers: where in the model that began.
  std::string accept(const at::Tensor& candidates, const at::Tensor& logits);
  at::Tensor candidates(const at::Tensor& logits) const {
    return sampler_.candidates(logits, seen_, std::ssize(answer_.ids));
  }
  bool greedy() const { return sampler_.greedy(); }
  int64_t last_token() const { return answer_.ids.back(); }
  bool cancelled() const { return sequence.stop.stop_requested(); }
  /// The most tokens that its answer may still get.
  int64_t tokens_left() const;

  /// Bytes of the patches that its encoder has still to see.
  size_t patch_bytes() const;

  /// Notes what the prefill left, and tells it.
  void prefilled();
  /// Takes over what the prefill of another choice left; the caches' memory is shared until one of them
  /// grows.
  void fork(const Job& first) { sequence = first.sequence; }
  /// From here on events go there.
  void report_to(std::shared_ptr<EventSink> events) { events_ = std::move(events); }
  /// Frees the sequence and gives the answer to the future; so do choices that still wait for this one.
  void finish(const std::string& reason);
  void fail(std::exception_ptr error);
  std::future<Answer> future() { return promise_.get_future(); }

  Sequence sequence;
  size_t reserved = 0;                      ///< bytes of KV cache set aside for it; none while it waits
  std::vector<std::unique_ptr<Job>> forks;  ///< further choices that wait for its prefill

 private:
  void choose_prefix(PrefixCache& cache, Reuse reuse);
  void say(const std::string& text);
  TokenInfo info_of(int64_t id, const at::Tensor& logits) const;
  std::string where_numbers_end() const;

  const Engine& engine_;
  const int64_t max_new_tokens_;
  const std::vector<int64_t> stop_ids_;
  const std::optional<int64_t> logprobs_;
  const bool logits_;
  const std::function<void(const std::string&)> on_text_;
  std::shared_ptr<EventSink> events_;
  Sampler sampler_;
  StreamDecoder decoder_;
  StopStrings stop_strings_;
  std::vector<int64_t> seen_;
  Answer answer_;
  std::promise<Answer> promise_;
};

/// The candidates of each job for its next token, on the CPU; its row of logits [jobs, V] says what they are.
/// One copy from the device for all.
std::vector<at::Tensor> next_candidates(std::span<Job* const> jobs, const at::Tensor& logits);

}  // namespace glimpse
