#pragma once

#include <future>

#include "glimpse/engine/engine.h"

namespace glimpse {

/// One request on its way to its answer.
class Job {
 public:
  /// Makes prompt and pruners. Errors: what is wrong with the request.
  Job(const Engine& engine, const Request& request);

  /// Chooses the next token from logits [V]. Returns why the answer ends with it, or "".
  std::string accept(const at::Tensor& logits);
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

}  // namespace glimpse
