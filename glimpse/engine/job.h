#pragma once

#include <future>

#include "glimpse/engine/engine.h"

namespace glimpse {

/// One request on its way to its answer.
class Job {
 public:
  /// Makes prompt and pruners. Errors: what is wrong with the request.
  Job(const Engine& engine, const Request& request);

  /// Takes the next token: one of its `candidates` (see Sampler), or of a greedy job's the likeliest. Returns
  /// why the answer ends with it, or "".
  std::string accept(const at::Tensor& candidates);
  at::Tensor candidates(const at::Tensor& logits) const { return sampler_.candidates(logits, seen_); }
  bool greedy() const { return sampler_.greedy(); }
  int64_t last_token() const { return answer_.ids.back(); }
  bool cancelled() const { return sequence.stop.stop_requested(); }
  /// The most tokens that its answer may still get.
  int64_t tokens_left() const;

  /// Bytes of the patches that its encoder has still to see.
  size_t patch_bytes() const;

  /// Notes what the prefill left.
  void prefilled();
  /// Frees the sequence and gives the answer to the future.
  void finish(const std::string& reason);
  void fail(std::exception_ptr error);
  std::future<Answer> future() { return promise_.get_future(); }

  Sequence sequence;
  size_t reserved = 0;  ///< bytes of KV cache set aside for it; none while it waits

 private:
  void say(const std::string& text);

  const Engine& engine_;
  const int64_t max_new_tokens_;
  const bool ignore_eos_;
  const std::function<void(const std::string&)> on_text_;
  Sampler sampler_;
  StreamDecoder decoder_;
  std::vector<int64_t> seen_;
  Answer answer_;
  std::promise<Answer> promise_;
};

/// The candidates of each job for its next token, on the CPU; its row of logits [jobs, V] says what they are.
/// One copy from the device for all.
std::vector<at::Tensor> next_candidates(std::span<const std::unique_ptr<Job>> jobs, const at::Tensor& logits);

}  // namespace glimpse
