#pragma once

#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/thread_pool.hpp>
#include <condition_variable>
#include <mutex>
#include <stop_token>

#include "glimpse/engine/scheduler.h"
#include "glimpse/serve/client_media.h"
#include "glimpse/serve/http.h"
#include "glimpse/serve/metrics.h"
#include "glimpse/serve/writers.h"

namespace glimpse::serve {

/// What answers need of the server. `engine` and `scheduler` are there once the model is loaded.
struct ServiceState {
  ServiceState(const MediaOptions& media_options, const std::string& model)
      : media(media_options), metrics(model) {}

  Served served;
  ClientMedia media;
  Metrics metrics;
  boost::asio::thread_pool workers{2};
  boost::asio::thread_pool video_workers{2};  // so that videos hold up nothing else
  std::unique_ptr<Engine> engine;
  std::unique_ptr<Scheduler> scheduler;
  std::mutex mutex;  // of what follows
  std::condition_variable_any changed;
  size_t open_chats = 0;
  std::atomic<size_t> fetching = 0;  // requests whose media are fetched, or videos decoded
};

/// In whose words is asked and answered.
enum class Api { chat, responses };

/// One request for an answer. What happens to it comes through a strand, in order.
class Chat : public std::enable_shared_from_this<Chat> {
 public:
  Chat(ServiceState& service, std::shared_ptr<Reply> reply, Api api)
      : service_(service),
        api_(api),
        reply_(std::move(reply)),
        strand_(boost::asio::make_strand(service.workers)) {
    const std::lock_guard lock(service_.mutex);
    ++service_.open_chats;
  }
  ~Chat();
  Chat(const Chat&) = delete;

  /// Nobody waits for the answer any more.
  void cancel() { stop_.request_stop(); }
  /// Reads the request, gets its media and submits it. May wait for disks and decoders, not for networks.
  void start(std::shared_ptr<const HttpRequest> from);
  /// What the scheduler tells of one of its choices.
  void take(int64_t choice, Event event) {
    boost::asio::post(strand_, [self = shared_from_this(), choice, event = std::move(event)]() mutable {
      self->happen(choice, event);
    });
  }

 private:
  void read(std::shared_ptr<const HttpRequest> from);
  void arrived(size_t medium, std::shared_ptr<const std::string> bytes, const std::exception_ptr& error);
  void submit();
  void get_media();
  Medium medium(size_t i) const;
  void start_fetching();
  void not_fetching();
  void fail_later();
  void happen(int64_t choice, Event& event);
  void prefilled(int64_t choice, const Answer& answer);
  void token(int64_t choice, const NextToken& next);
  void ended(int64_t choice, Ended& end);
  void finish();
  void fail(const ApiError& error);
  nlohmann::json kept(const Answer& answer);

  ServiceState& service_;
  const Api api_;
  std::shared_ptr<Reply> reply_;
  boost::asio::strand<boost::asio::thread_pool::executor_type> strand_;
  std::stop_source stop_;
  const std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  std::chrono::steady_clock::time_point last_token_;
  std::shared_ptr<const HttpRequest> from_;  // until the request is submitted
  std::vector<std::shared_ptr<const std::string>>
      fetched_;  // files, one per medium; null where it came along
  size_t to_fetch_ = 0;
  std::atomic<bool> fetching_ = false;  // counted in ServiceState::fetching
  ChatCall call_;
  std::unique_ptr<AnswerWriter> writer_;
  std::vector<std::shared_ptr<const Answer>> answers_;
  nlohmann::json overlay_;
  bool begun_ = false, over_ = false, first_token_ = true;
};

/// An error as an answer.
HttpResponse to_response(const ApiError& error);

}  // namespace glimpse::serve
