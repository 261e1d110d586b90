#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace glimpse {

struct Answer;

/// A token of an answer.
struct TokenInfo {
  int64_t id = 0;
  std::optional<float> logprob;                ///< of the model's distribution; if asked for
  std::vector<std::pair<int64_t, float>> top;  ///< the likeliest tokens with theirs; as many as asked for
};

/// The prompt has run: `answer` has all that is known then (what was kept, scores, token counts).
struct PrefillDone {
  std::shared_ptr<const Answer> answer;
};
/// The next token, and the whole characters that are certain with it: maybe none, maybe earlier ones too.
struct NextToken {
  TokenInfo token;
  std::string text;
};
/// The last event. Either the answer, with what of its text no token's event had, or what went wrong.
struct Ended {
  std::shared_ptr<const Answer> answer;
  std::string text;
  std::exception_ptr error;
};
using Event = std::variant<PrefillDone, NextToken, Ended>;

/// Who is told what happens to a request: by the thread that steps, which waits for it, so it only takes
/// note.
class EventSink {
 public:
  virtual ~EventSink() = default;
  virtual void push(Event event) = 0;
};

/// What happens to a request, for another thread to read. Whoever answers never waits for the reader.
class EventQueue final : public EventSink {
 public:
  void push(Event event) override {
    {
      const std::lock_guard lock(mutex_);
      events_.push_back(std::move(event));
    }
    wake_.notify_one();
  }
  /// The next event, or nothing if there is none within `patience`.
  std::optional<Event> pop(std::chrono::milliseconds patience) {
    std::unique_lock lock(mutex_);
    if (!wake_.wait_for(lock, patience, [&] { return !events_.empty(); })) return std::nullopt;
    Event event = std::move(events_.front());
    events_.pop_front();
    return event;
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Event> events_;
};

}  // namespace glimpse
