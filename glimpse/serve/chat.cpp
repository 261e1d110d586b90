#include "glimpse/serve/chat.h"

#include <algorithm>

#include "glimpse/base/check.h"
#include "glimpse/base/json_file.h"
#include "glimpse/base/web_text.h"
#include "glimpse/engine/kept_grids.h"
#include "glimpse/nn/parallel.h"

namespace glimpse::serve {

namespace asio = boost::asio;
using Clock = std::chrono::steady_clock;
using nlohmann::json;

namespace {

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::string data_url(const Image& image) {
  const std::vector<uint8_t> png = encode_png(image);
  return "data:image/png;base64," + base64({reinterpret_cast<const char*>(png.data()), png.size()});
}

// Of each image and video, with its kept tokens tinted.
json overlays(const Answer& answer, const std::vector<Medium>& media) {
  json out = json::array();
  for (size_t i = 0; i < media.size(); ++i) {
    const std::vector<KeptGrid> grids = kept_grids(answer.segments, answer.keep, static_cast<int64_t>(i));
    const auto* const video = std::get_if<Video>(&media[i]);
    out.push_back(data_url(video ? dynamic_cast<const ClientVideo&>(*video->source).sheet(grids)
                                 : draw_kept(std::get<Image>(media[i]), grids)));
  }
  return out;
}

// What cannot fit is not decoded first. No family has tokens of more than 32 x 32 pixels of a pair of frames.
void check_room(const Video& video, int64_t context) {
  constexpr int kFactor = 28;
  constexpr int64_t kMostPixels = int64_t{32} * 32;
  const VideoSample sample = sample_video(video.source->info(), video.options, kFactor);
  const int64_t frames = std::ssize(sample.indices);
  check_as(Error::Kind::too_large,
           frames / 2 * sample.size.height * sample.size.width / kMostPixels < context, "the video's ",
           frames, " frames of ", sample.size.width, " x ", sample.size.height,
           " pixels do not fit the model's context of ", context,
           " tokens; lower fps, num_frames, max_frames or max_pixels");
}

class Sink : public EventSink {
 public:
  Sink(std::shared_ptr<Chat> chat, int64_t choice) : chat_(std::move(chat)), choice_(choice) {}
  void push(Event event) override { chat_->take(choice_, std::move(event)); }

 private:
  const std::shared_ptr<Chat> chat_;
  const int64_t choice_;
};

}  // namespace

HttpResponse to_response(const ApiError& error) {
  HttpResponse response{error.status, "application/json", json_text(error_json(error)), {}};
  if (error.status == 429 || error.status == 503) response.headers.emplace_back("Retry-After", "1");
  if (error.status == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  return response;
}

Chat::~Chat() {
  not_fetching();
  const std::lock_guard lock(service_.mutex);
  --service_.open_chats;
  service_.changed.notify_all();
}

void Chat::start_fetching() {
  if (!fetching_.exchange(true)) ++service_.fetching;
}

void Chat::not_fetching() {
  if (fetching_.exchange(false)) --service_.fetching;
}

void Chat::start(std::shared_ptr<const HttpRequest> from) {
  try {
    read(std::move(from));
  } catch (...) {
    fail_later();
  }
}

// Tells of the exception that is handled, in the strand.
void Chat::fail_later() {
  asio::post(strand_, [self = shared_from_this(), error = api_error(std::current_exception())] {
    if (!self->over_) self->fail(error);
  });
}

void Chat::read(std::shared_ptr<const HttpRequest> from) {
  const json body = parse_body(from->body);
  const bool responses = api_ == Api::responses;
  try {
    call_ = read_chat(responses ? chat_of_responses(body) : body, service_.served);
  } catch (const ApiError& error) {
    if (!responses) throw;
    throw in_words_of_responses(error, body);
  }
  writer_ =
      responses ? responses_writer(call_, body) : chat_writer(call_, service_.engine->model().tokenizer());
  from_ = std::move(from);
  fetched_.resize(call_.media.size());
  to_fetch_ = static_cast<size_t>(std::ranges::count_if(call_.media, ClientMedia::remote));
  if (to_fetch_ == 0) return get_media();
  start_fetching();
  for (size_t i = 0; i < call_.media.size(); ++i) {
    if (!ClientMedia::remote(call_.media[i])) continue;
    service_.media.fetch(
        call_.media[i], stop_.get_token(), [self = shared_from_this(), i](auto bytes, auto error) {
          asio::post(self->strand_,
                     [self, i, bytes = std::move(bytes), error] { self->arrived(i, bytes, error); });
        });
  }
}

void Chat::arrived(size_t medium, std::shared_ptr<const std::string> bytes, const std::exception_ptr& error) {
  if (over_) return;
  try {
    if (error) std::rethrow_exception(error);
    fetched_[medium] = std::move(bytes);
    if (--to_fetch_ == 0) get_media();
  } catch (...) {
    fail(api_error(std::current_exception()));
  }
}

// All files are here.
void Chat::get_media() {
  if (std::ranges::none_of(call_.media, &MediumSource::video)) return submit();
  start_fetching();
  asio::post(service_.video_workers, [self = shared_from_this()] {
    [[maybe_unused]] thread_local const int before = work_alone();
    try {
      self->submit();
    } catch (...) {
      self->fail_later();
    }
  });
}

Medium Chat::medium(size_t i) const {
  const MediumSource& source = call_.media[i];
  if (!source.video) return service_.media.picture(source, call_.request.bounds, fetched_[i].get());
  Video video{service_.media.video(source, stop_.get_token(), fetched_[i].get()), call_.video};
  const auto before = std::count_if(call_.media.begin(), call_.media.begin() + static_cast<std::ptrdiff_t>(i),
                                    [](const MediumSource& each) { return each.video; });
  if (!call_.fps.empty())
    video.options.fps = call_.fps[std::min(static_cast<size_t>(before), call_.fps.size() - 1)];
  check_room(video, service_.engine->model().max_positions());
  return video;
}

void Chat::submit() {
  for (size_t i = 0; i < call_.media.size(); ++i) {
    if (stop_.stop_requested()) return;
    call_.request.media.push_back(medium(i));
    fetched_[i].reset();
  }
  from_.reset();
  call_.request.stop = stop_.get_token();
  answers_.resize(static_cast<size_t>(call_.choices));
  std::vector<std::shared_ptr<EventSink>> sinks;
  for (int64_t i = 0; i < call_.choices; ++i) sinks.push_back(std::make_shared<Sink>(shared_from_this(), i));
  const Request request = std::move(call_.request);
  if (call_.wants.contains("overlay")) call_.request.media = request.media;
  service_.scheduler->submit(request, call_.choices, sinks);
  not_fetching();
}

void Chat::happen(int64_t choice, Event& event) {
  if (over_) return;
  try {
    if (const auto* done = std::get_if<PrefillDone>(&event)) prefilled(choice, *done->answer);
    if (const auto* next = std::get_if<NextToken>(&event)) token(choice, *next);
    if (auto* end = std::get_if<Ended>(&event)) ended(choice, *end);
  } catch (...) {
    fail(api_error(std::current_exception()));
  }
}

json Chat::kept(const Answer& answer) {
  json out = kept_json(answer, call_);
  if (call_.wants.contains("overlay")) {
    if (overlay_.is_null()) overlay_ = overlays(answer, std::exchange(call_.request.media, {}));
    // Each with the first grid of its image.
    for (size_t i = answer.segments.size(); i-- > 0;)
      if (const auto image = static_cast<size_t>(answer.segments[i].medium);
          image < overlay_.size() && (i == 0 || answer.segments[i - 1].medium != answer.segments[i].medium))
        out["images"].at(i)["overlay"] = overlay_[image];
  }
  return out;
}

void Chat::prefilled(int64_t choice, const Answer& answer) {
  if (choice == 0) {
    Metrics& metrics = service_.metrics;
    metrics.add("prompt_tokens_total", static_cast<double>(answer.prompt_tokens));
    metrics.add("visual_tokens_total", static_cast<double>(answer.visual_tokens));
    metrics.add("visual_tokens_kept_total", static_cast<double>(answer.kept_tokens));
    if (answer.visual_tokens > 0) {
      metrics.observe("visual_tokens_kept_share", answer.kept_share());
      metrics.add("prefix_cache_queries", static_cast<double>(answer.prompt_tokens));
      metrics.add("prefix_cache_hits", static_cast<double>(answer.cached_tokens));
    }
    metrics.observe(
        "request_queue_time_seconds",
        std::max(0.0, seconds_since(begin_) - (answer.times.vision + answer.times.prefill) / 1000));
  }
  if (!call_.stream) return;
  if (!begun_) {
    begun_ = true;
    reply_->begin(
        {200, "text/event-stream", "", {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}}});
  }
  reply_->write(writer_->started(choice, choice == 0 ? kept(answer) : json()));
}

void Chat::token(int64_t choice, const NextToken& next) {
  Metrics& metrics = service_.metrics;
  metrics.add("generation_tokens_total");
  metrics.observe(first_token_ ? "time_to_first_token_seconds" : "inter_token_latency_seconds",
                  seconds_since(first_token_ ? begin_ : last_token_));
  first_token_ = false;
  last_token_ = Clock::now();
  if (!call_.stream || (next.text.empty() && !call_.logprobs)) return;
  reply_->write(writer_->piece(choice, next.text, call_.logprobs ? &next.token : nullptr));
}

void Chat::ended(int64_t choice, Ended& end) {
  if (end.error) return fail(api_error(end.error));
  if (end.answer->finish_reason == "cancelled")
    return fail({503, "unavailable_error", "the server ends; the answer was stopped"});
  answers_[static_cast<size_t>(choice)] = end.answer;
  service_.metrics.add("request_success_total", 1, "finished_reason=\"" + end.answer->finish_reason + "\"");
  if (call_.stream) {
    if (!end.text.empty()) reply_->write(writer_->piece(choice, end.text, nullptr));
    reply_->write(writer_->ended(choice, *end.answer));
  }
  for (const auto& answer : answers_)
    if (!answer) return;
  finish();
}

void Chat::finish() {
  over_ = true;
  service_.metrics.observe("e2e_request_latency_seconds", seconds_since(begin_));
  const json kept_tokens = kept(*answers_[0]);
  if (!call_.stream)
    return reply_->send({200, "application/json", json_text(writer_->whole(answers_, kept_tokens)), {}});
  reply_->write(writer_->finished(answers_, kept_tokens));
  reply_->end();
}

void Chat::fail(const ApiError& error) {
  over_ = true;
  cancel();  // the other choices
  not_fetching();
  service_.metrics.add("request_failure_total", 1, "status=\"" + std::to_string(error.status) + "\"");
  if (!begun_) return reply_->send(to_response(error));
  reply_->write(writer_->failed(error));
  reply_->end();
}

}  // namespace glimpse::serve
